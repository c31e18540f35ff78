"""One answer, token by token, as it is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp

from clara_jax.generate.batched import (
    AnyArray,
    Watch,
    decoder_variables,
    embed_prompts,
    pad_prompt,
)
from clara_jax.generate.decode import DecodeConfig, jit_decode_step, jit_prefill
from clara_jax.generate.sampling import row_keys
from clara_jax.model import Transformer
from clara_jax.shapes import Float, Params


def stream_tokens(
    model: Transformer,
    backbone: Params,
    adapters: Params,
    row: Sequence[int],
    vectors: Float[AnyArray, "J M D"],
    config: DecodeConfig,
    seed: int = 0,
    merged: Params | None = None,
    watch: Watch = contextlib.nullcontext,
) -> Iterator[int]:
    """Yield the tokens that `continue_rows` gives, each as soon as it is known.

    Args:
      model, backbone, adapters, config, seed, merged, watch: as of `continue_rows`.
      row: token ids of one prompt.
      vectors: fill its memory tokens.

    Yields:
      New tokens of the generator, the end token left out.
    """
    variables = decoder_variables(backbone, adapters, "generator", merged)
    with watch("prefill"):
        prompt = pad_prompt(row, config.pad_id)
        filling = jnp.asarray(vectors)[None]
        embeddings = embed_prompts(model, backbone, adapters, prompt, filling)
        keys = row_keys(seed, jnp.arange(1))
        state = jit_prefill(model, variables, embeddings, prompt.mask, config, keys)
        token = int(state.tokens[0, 0])
    for step in range(1, config.max_new_tokens + 1):
        if token in config.eos_ids:
            return
        yield token
        if step < config.max_new_tokens:
            with watch("decode"):
                state = jit_decode_step(model, variables, state, config)
                token = int(state.tokens[0, step])


def text_pieces(
    tokens: Iterator[int], decode: Callable[[Sequence[int]], str]
) -> Iterator[str]:
    """Yield text as tokens complete it.

    A token may end in the middle of a character, or change how the one before it is
    spelled; a piece is held back until its text is final.

    Args:
      tokens: ids. decode: ids to text.

    Yields:
      Pieces that join to the decoded whole, white space around it left out.
    """
    ids: list[int] = []
    told = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids).lstrip()
        # White space at the end may be the last of the answer.
        if not text.endswith("\ufffd") and text.startswith(told):
            piece = text.rstrip()[len(told) :]
            if piece:
                yield piece
                told += piece
    rest = decode(ids).strip()[len(told) :]
    if rest:
        yield rest
