"""One frozen transformer with its adapters, and the three roles that it plays."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from clara_jax.clara.batches import Tokens
from clara_jax.model import Transformer, merge_lora
from clara_jax.shapes import Array, Bool, Float, Int, Key, Params

ROLES = ("compressor", "reasoner", "generator")


def init_rows(
    table: Float[Array, "V D"], count: int, key: Key
) -> Float[Array, "{count} D"]:
    """Draw float32 rows for a table, with its rows' mean and standard deviation.

    The original draws from a full-covariance normal; a diagonal one needs no
    decomposition of a ``[D, D]`` matrix and starts memory tokens as well.
    """
    wide = table.astype(jnp.float32)
    mean, std = jnp.mean(wide, axis=0), jnp.std(wide, axis=0)
    noise = jax.random.normal(key, (count, table.shape[1]))
    return mean[None, :] + std[None, :] * noise


def positions_in_rows(mask: Bool[Array, "*rows T"]) -> Int[Array, "*rows T"]:
    """Return the position of every token in its own row, padding not counted.

    Padding takes its left neighbour's position, so a row's largest position is that of
    its last token.
    """
    counted = jnp.cumsum(mask.astype(jnp.int32), axis=-1)
    return jnp.maximum(counted - 1, 0)


def memory_slots(mask: Bool[Array, "B T"], num_memory: int) -> Int[Array, "B M"]:
    """Return where each row's memory tokens stand: its last M real positions.

    Rows without any token (absent documents) point somewhere harmless.
    """
    length = mask.shape[-1]
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=-1)
    slots = last[:, None] - num_memory + 1 + jnp.arange(num_memory)[None, :]
    return jnp.clip(slots, 0, length - 1)


def fill_slots(
    embeddings: Float[Array, "B T D"],
    prompt: Tokens,
    vectors: Float[Array, "B J M D"],
    text_vocab: int,
) -> Float[Array, "B T D"]:
    """Put document vectors in place of the prompt's memory tokens (paper section 3.2).

    The i-th memory token of a row, counted from the left over all its documents, takes
    vector ``(i // M, i % M)``. Memory tokens beyond ``J * M`` keep their own embedding;
    their ids are those from `text_vocab` on.
    """
    batch, documents, num_memory, width = vectors.shape
    is_memory = (prompt.ids >= text_vocab) & (prompt.ids < text_vocab + num_memory)
    is_memory &= prompt.mask
    order = jnp.cumsum(is_memory.astype(jnp.int32), axis=-1) - 1
    filled = is_memory & (order < documents * num_memory)
    flat = vectors.reshape(batch, documents * num_memory, width)
    places = jnp.clip(order, 0, flat.shape[1] - 1)
    chosen = jnp.take_along_axis(flat, places[..., None], axis=1)
    return jnp.where(filled[..., None], chosen.astype(embeddings.dtype), embeddings)


class Encoding(NamedTuple):
    """What the compressor makes of documents.

    Attributes:
      memory: last hidden states at the memory tokens: the document.
      memory_mean: float32 mean of the hidden states over memory tokens.
      text_mean: the same over all other tokens, for the MSE term.
    """

    memory: Float[Array, "B M D"]
    memory_mean: Float[Array, "B D"]
    text_mean: Float[Array, "B D"]


def _mean(hidden: Float[Array, "B T D"], chosen) -> Float[Array, "B D"]:
    weight = chosen.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
    return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


@struct.dataclass
class Network:
    """A frozen backbone and its adapters: everything that a forward pass takes.

    Attributes:
      model: the transformer, without numbers; static under ``jax.jit``.
      backbone: ``params`` and the frozen ``rows`` (``marks [3, D]`` for AE, ENC, SEP;
        ``head [M + 3, D]`` unless tied).
      adapters: a ``lora`` tree per role, ``memory [M, D]``, and for language-model
        pretraining ``backbone``, which then stands for ``params``.

    Example:
      >>> from clara_jax.testing import random_batch, toy_network
      >>> network, batch = toy_network(), random_batch("scp")
      >>> network.reason(batch.prompt).shape  # [B, M * D]
      (4, 32)
    """

    model: Transformer = struct.field(pytree_node=False)
    backbone: Params
    adapters: Params

    @property
    def num_memory(self) -> int:
        """M, the number of memory tokens."""
        return self.adapters["memory"].shape[0]

    def with_adapters(self, adapters: Mapping[str, Params]) -> "Network":
        """Return the same network with some adapters added or replaced."""
        return dataclasses.replace(self, adapters={**self.adapters, **adapters})

    def merge(self, role: str) -> "Network":
        """Return a network whose weights hold a role's adapter: play it with role None.

        The sum is made in float32; the frozen weights are copied.
        """
        lora, params = self.model.lora, self.backbone["params"]
        merged = merge_lora(lora, params, self.adapters[role])
        return dataclasses.replace(self, backbone={**self.backbone, "params": merged})

    def variables(self, role: str | None = None) -> Params:
        """Return the collections with which the transformer plays one role.

        Args:
          role: out of `ROLES`, or None for no adapter at all.
        """
        adapters = self.adapters
        variables = {"params": adapters.get("backbone", self.backbone["params"])}
        if "memory" in adapters:
            frozen, memory = self.backbone["rows"], adapters["memory"]
            marks = frozen["marks"].astype(memory.dtype)
            rows = {"embedding": jnp.concatenate((memory, marks), axis=0)}
            if "head" in frozen:
                rows["head"] = frozen["head"]
            variables["rows"] = rows
        if role is not None:
            variables["lora"] = adapters[role]
        return variables

    def compress(
        self, tokens: Tokens, *, role: str | None = "compressor", rng: Key | None = None
    ) -> Encoding:
        """Compress documents (paper section 3.1).

        Args:
          tokens: encoder rows ``[B, S]``: ``<ENC><bos>text<eos>`` and M memory tokens.
          role: whose adapter reads.
          rng: key of the adapter's dropout; None switches it off.
        """
        hidden = self._hidden(self.embed(tokens, None), tokens, role, rng)
        slots = memory_slots(tokens.mask, self.num_memory)
        columns = jnp.arange(tokens.ids.shape[1])[None, :]
        in_memory = (columns >= slots[:, :1]) & (columns <= slots[:, -1:])
        return Encoding(
            memory=jnp.take_along_axis(hidden, slots[..., None], axis=1),
            memory_mean=_mean(hidden, in_memory & tokens.mask),
            text_mean=_mean(hidden, ~in_memory & tokens.mask),
        )

    def reason(self, tokens: Tokens, *, rng: Key | None = None) -> Float[Array, "B W"]:
        """Encode questions ``[B, S]`` in the documents' space, flat ``[B, M * D]``."""
        memory = self.compress(tokens, role="reasoner", rng=rng).memory
        return memory.reshape(memory.shape[0], -1)

    def generate_hidden(
        self,
        prompt: Tokens,
        vectors: Float[Array, "B J M D"] | None,
        *,
        role: str | None = "generator",
        rng: Key | None = None,
    ) -> Float[Array, "B T D"]:
        """Return the last hidden states of prompts whose slots hold `vectors`."""
        return self._hidden(self.embed(prompt, vectors), prompt, role, rng)

    def embed(
        self, tokens: Tokens, vectors: Float[Array, "B J M D"] | None
    ) -> Float[Array, "B T D"]:
        """Return the input embeddings of rows whose slots hold `vectors`, if any."""
        apply: Any = self.model.apply
        embeddings = apply(self.variables(), tokens.ids, method="embed")
        if vectors is None or not vectors.shape[1]:
            return embeddings
        return fill_slots(embeddings, tokens, vectors, self.model.text_vocab)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Return float32 scores of hidden states, special rows included."""
        apply: Any = self.model.apply
        return apply(self.variables(), hidden, method="logits")

    def _hidden(
        self,
        embeddings: Float[Array, "B T D"],
        tokens: Tokens,
        role: str | None,
        rng: Key | None,
    ) -> Float[Array, "B T D"]:
        positions = tokens.positions
        if positions is None:
            positions = positions_in_rows(tokens.mask)
        mask = None if tokens.right_padded else tokens.mask
        rngs = None if rng is None else {"dropout": rng}
        apply: Any = self.model.apply
        variables = self.variables(role)
        given = embeddings, positions, mask
        return apply(variables, *given, rngs=rngs, method="hidden")[0]
