"""Compressor, reasoner and generator: one transformer, three adapters."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from clara_jax.clara.batches import Tokens
from clara_jax.clara.memory import (
    fill_slots,
    memory_slots,
    positions_in_rows,
    role_variables,
)
from clara_jax.model import Transformer
from clara_jax.shapes import Array, Float, Key, Params


class Encoding(NamedTuple):
    """What the compressor makes of documents.

    Attributes:
      memory: ``[B, M, D]`` last hidden states at the memory tokens: the document.
      memory_mean, text_mean: ``[B, D]`` float32 means of the hidden states over memory
        tokens and over all others, for the MSE term.
    """

    memory: Float[Array, "B M D"]
    memory_mean: Float[Array, "B D"]
    text_mean: Float[Array, "B D"]


class Compressor(nn.Module):
    """Read token rows and keep M vectors of each (paper section 3.1).

    Shares the transformer's variables: apply it with what `role_variables` gives.
    """

    transformer: Transformer
    num_memory: int

    def setup(self) -> None:
        """Use the transformer's own variable names."""
        nn.share_scope(self, self.transformer)

    def __call__(self, tokens: Tokens) -> Encoding:
        """Encode rows ``[B, S]`` that end in M memory tokens."""
        hidden = _hidden(self.transformer, self.transformer.embed(tokens.ids), tokens)
        slots = memory_slots(tokens.mask, self.num_memory)
        memory = jnp.take_along_axis(hidden, slots[..., None], axis=1)
        columns = jnp.arange(tokens.ids.shape[1])[None, :]
        in_memory = (columns >= slots[:, :1]) & (columns <= slots[:, -1:])
        return Encoding(
            memory=memory,
            memory_mean=_mean(hidden, in_memory & tokens.mask),
            text_mean=_mean(hidden, ~in_memory & tokens.mask),
        )


class Reasoner(Compressor):
    """Read questions as the compressor reads documents, into the same space."""

    def __call__(self, tokens: Tokens) -> Float[Array, "B W"]:
        """Encode questions ``[B, S]`` to flat vectors, ``W = M * D``."""
        memory = super().__call__(tokens).memory
        return memory.reshape(memory.shape[0], -1)


class Generator(nn.Module):
    """Answer a prompt whose document slots hold vectors instead of text."""

    transformer: Transformer

    def setup(self) -> None:
        """Use the transformer's own variable names."""
        nn.share_scope(self, self.transformer)

    def embed(
        self, prompt: Tokens, vectors: Float[Array, "B J M D"]
    ) -> Float[Array, "B T D"]:
        """Input embeddings of the prompt with its slots filled."""
        embeddings = self.transformer.embed(prompt.ids)
        return fill_slots(embeddings, prompt, vectors, self.transformer.text_vocab)

    def __call__(
        self, prompt: Tokens, vectors: Float[Array, "B J M D"]
    ) -> Float[Array, "B T D"]:
        """Last hidden states ``[B, T, D]``; `Transformer.logits` scores them."""
        return _hidden(self.transformer, self.embed(prompt, vectors), prompt)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Scores of the text vocabulary and the special rows."""
        return self.transformer.logits(hidden)


def _hidden(
    transformer: Transformer, embeddings: Float[Array, "B T D"], tokens: Tokens
) -> Float[Array, "B T D"]:
    positions = tokens.positions
    if positions is None:
        positions = positions_in_rows(tokens.mask)
    mask = None if tokens.right_padded else tokens.mask
    return transformer.hidden(embeddings, positions, mask)[0]


def _mean(hidden: Float[Array, "B T D"], chosen) -> Float[Array, "B D"]:
    weight = chosen.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
    return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def _rngs(rng: Key | None) -> dict[str, Key] | None:
    return None if rng is None else {"dropout": rng}


def _apply(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """Call a module that changes no collection: its result comes alone."""
    return module.apply(*arguments, **options)


def compress(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    tokens: Tokens,
    *,
    num_memory: int,
    role: str | None = "compressor",
    rng: Key | None = None,
) -> Encoding:
    """Compress documents.

    Args:
      model: the transformer.
      backbone, adapters: see `role_variables`.
      tokens: encoder rows ``[B, S]``: ``<ENC><bos>text<eos>`` and M memory tokens.
      num_memory: M.
      role: whose adapter reads.
      rng: key of the adapter's dropout; None switches it off.

    Returns:
      An `Encoding`.
    """
    return _apply(
        Compressor(model, num_memory),
        role_variables(backbone, adapters, role),
        tokens,
        rngs=_rngs(rng),
    )


def reason(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    tokens: Tokens,
    *,
    num_memory: int,
    rng: Key | None = None,
) -> Float[Array, "B W"]:
    """Encode questions ``[B, S]`` into the documents' space, flat ``[B, M * D]``."""
    return _apply(
        Reasoner(model, num_memory),
        role_variables(backbone, adapters, "reasoner"),
        tokens,
        rngs=_rngs(rng),
    )


def generate_hidden(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    prompt: Tokens,
    vectors: Float[Array, "B J M D"],
    *,
    role: str | None = "generator",
    rng: Key | None = None,
) -> Float[Array, "B T D"]:
    """Last hidden states of prompts whose slots hold `vectors`."""
    return _apply(
        Generator(model),
        role_variables(backbone, adapters, role),
        prompt,
        vectors,
        rngs=_rngs(rng),
    )


def prompt_embeddings(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    prompt: Tokens,
    vectors: Float[Array, "B J M D"],
) -> Float[Array, "B T D"]:
    """Input embeddings of prompts with their slots filled, for decoding."""
    return _apply(
        Generator(model),
        role_variables(backbone, adapters, None),
        prompt,
        vectors,
        method="embed",
    )


def logits_of(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    hidden: Float[Array, "*rows D"],
) -> Float[Array, "*rows V"]:
    """Float32 scores of hidden states, special rows included."""
    variables = role_variables(backbone, adapters, None)
    return _apply(model, variables, hidden, method="logits")
