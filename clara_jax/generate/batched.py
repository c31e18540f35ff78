"""Texts and prompts of any number and length through the compiled functions.

Vectors stay in host memory between the parts: batches are cut and put together there,
so that only padded shapes are ever compiled.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import (
    Tokens,
    compress,
    cosine_scores,
    prompt_embeddings,
    role_variables,
)
from clara_jax.distributed import to_host
from clara_jax.generate.batching import (
    batches_by_length,
    length_bucket,
    pad_rows,
    row_bucket,
)
from clara_jax.generate.decode import DecodeConfig, jit_decode_loop, jit_prefill
from clara_jax.generate.sampling import row_keys
from clara_jax.model import Transformer
from clara_jax.shapes import Array, Float, Int, Params
from clara_jax.sharding import place

Watch = Callable[[str], AbstractContextManager]
"""Called with a part's name for a context around it, to take times."""

AnyArray = Array | np.ndarray

Tell = Callable[[int], object]
"""Told, as work goes on, how many rows more are done; what it raises ends the work."""

_PROMPT = 64
"""Shortest padded prompt: no real one is much shorter."""


def encode_rows(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    rows: Sequence[Sequence[int]],
    *,
    role: str | None,
    num_memory: int,
    pad_id: int,
    batch_size: int,
    largest: int | None = None,
    tell: Tell | None = None,
) -> Float[np.ndarray, "n M D"]:
    """Compress documents, or encode questions, batch by batch.

    A batch is fetched when the next one is under way, so that devices do not wait.

    Args:
      model: the transformer.
      backbone, adapters: see `role_variables`.
      rows: encoder rows, each ending in M memory tokens.
      role: ``compressor`` or ``reasoner``; None where the backbone holds its adapter.
      num_memory: M.
      pad_id: fills shorter rows.
      batch_size: rows read together.
      largest: longest row that can occur, where it is known.
      tell: called after each batch.

    Returns:
      ``[n, M, D]`` vectors in the rows' order.
    """
    dtype = jnp.dtype(model.config.dtype)
    vectors = np.zeros((len(rows), num_memory, model.config.width), dtype)
    under_way: list[tuple[np.ndarray, Array]] = []

    def fetch() -> None:
        chosen, found = under_way.pop(0)
        vectors[chosen] = to_host(found)[: len(chosen)]
        if tell is not None:
            tell(len(chosen))

    batches = batches_by_length(rows, pad_id, batch_size, largest, close=True)
    for chosen, tokens in batches:
        found = compress_batch(model, backbone, adapters, tokens, num_memory, role)
        under_way.append((chosen, found))
        if len(under_way) > 1:
            fetch()
    while under_way:
        fetch()
    return vectors


def continue_rows(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    rows: Sequence[Sequence[int]],
    vectors: Float[AnyArray, "n J M D"] | None,
    *,
    role: str | None,
    config: DecodeConfig,
    batch_size: int,
    seed: int = 0,
    watch: Watch = contextlib.nullcontext,
    merged: Params | None = None,
) -> Int[np.ndarray, "n new"]:
    """Decode what follows prompts, batch by batch.

    Args:
      model: the transformer.
      backbone, adapters: see `role_variables`.
      rows: token ids of each prompt.
      vectors: fill the memory tokens from the left; None where there are none.
      role: whose adapter writes; None for the plain backbone, without special rows.
      config: how to decode.
      batch_size: prompts decoded together.
      seed: of the draws, which do not depend on how rows fall into batches.
      watch: gets ``prefill`` and ``decode``.
      merged: weights that hold the role's adapter already, as of `merge_lora`.

    Returns:
      New tokens; a row ends with its end token, then pads.
    """
    if role is None and vectors is None:
        adapters = {name: adapters[name] for name in adapters if name == "backbone"}
    variables = decoder_variables(backbone, adapters, role, merged)
    filled = None if vectors is None else np.asarray(vectors)
    out = np.full((len(rows), config.max_new_tokens), config.pad_id, np.int32)
    batches = batches_by_length(rows, config.pad_id, batch_size, smallest=_PROMPT)
    for chosen, prompt in batches:
        padded = np.pad(chosen, (0, prompt.ids.shape[0] - len(chosen)), "edge")
        filling = None if filled is None else jnp.asarray(filled[padded])
        with watch("prefill"):
            embeddings = embed_prompts(model, backbone, adapters, prompt, filling)
            keys = row_keys(seed, jnp.asarray(padded))
            state = jit_prefill(model, variables, embeddings, prompt.mask, config, keys)
            jax.block_until_ready(state)
        with watch("decode"):
            state = jit_decode_loop(model, variables, state, config)
            out[chosen] = to_host(state.tokens)[: len(chosen)]
    return out


def decoder_variables(
    backbone: Params, adapters: Params, role: str | None, merged: Params | None
) -> Params:
    """Variables of the role that writes; `merged` weights need no adapter."""
    if merged is None:
        return role_variables(backbone, adapters, role)
    return {**role_variables(backbone, adapters, None), "params": merged}


def pad_prompt(row: Sequence[int], pad_id: int) -> Tokens:
    """One prompt as a batch, at a length that few programs serve."""
    return pad_rows([row], pad_id, 1, length_bucket(len(row), smallest=_PROMPT))


def candidate_scores(
    questions: Float[AnyArray, "B M D"], vectors: Float[AnyArray, "*rows C M D"]
) -> Float[np.ndarray, "B C"]:
    """Cosines of questions with their candidates, padded to few shapes.

    Args:
      questions: vectors of questions.
      vectors: of each question's candidates ``[B, C, M, D]``, or ``[C, M, D]`` the same
        for all questions.

    Returns:
      ``[B, C]`` float32.
    """
    rows, candidates = questions.shape[0], vectors.shape[-3]
    more_rows = row_bucket(rows, 1 << 30) - rows
    more = [(0, length_bucket(candidates) - candidates), (0, 0), (0, 0)]
    if vectors.ndim == 4:
        more.insert(0, (0, more_rows))
    scores = _scores(
        jnp.asarray(np.pad(questions, [(0, more_rows), (0, 0), (0, 0)])),
        jnp.asarray(np.pad(vectors, more)),
    )
    return to_host(scores)[:rows, :candidates]


@jax.jit
def _scores(
    questions: Float[Array, "B M D"], vectors: Float[Array, "*rows C M D"]
) -> Float[Array, "B C"]:
    flat = questions.reshape(questions.shape[0], -1)
    documents = vectors.reshape(*vectors.shape[:-2], -1)
    if documents.ndim == 3:
        return cosine_scores(flat, documents)

    def one(question: Float[Array, " W"]) -> Float[Array, " C"]:
        return cosine_scores(question[None], documents[None])[0]

    return jax.vmap(one)(flat)


@functools.partial(jax.jit, static_argnames=("model", "num_memory", "role"))
def compress_batch(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    tokens: Tokens,
    num_memory: int,
    role: str | None,
) -> Float[Array, "B M D"]:
    """Vectors of one padded batch of documents or questions."""
    tokens = jax.tree.map(lambda x: place(x, "batch", None), tokens)
    encoding = compress(
        model, backbone, adapters, tokens, num_memory=num_memory, role=role
    )
    return encoding.memory


@functools.partial(jax.jit, static_argnames="model")
def embed_prompts(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    prompt: Tokens,
    vectors: Float[Array, "B J M D"] | None,
) -> Float[Array, "B T D"]:
    """Input embeddings of prompts, their memory tokens filled with `vectors`."""
    if vectors is None or vectors.shape[1] == 0:
        variables = role_variables(backbone, adapters, None)
        apply: Any = model.apply
        return apply(variables, prompt.ids, method="embed")
    return prompt_embeddings(model, backbone, adapters, prompt, vectors)
