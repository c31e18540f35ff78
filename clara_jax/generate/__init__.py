"""Decoding, and answers from compressed documents."""

from clara_jax.generate.answer import Clara
from clara_jax.generate.batched import continue_rows, encode_rows
from clara_jax.generate.decode import (
    DecodeConfig,
    DecodeState,
    Sampling,
    decode_loop,
    decode_step,
    generate,
    prefill,
)
from clara_jax.generate.requests import AnswerConfig, Selection

__all__ = [
    "AnswerConfig",
    "Clara",
    "DecodeConfig",
    "DecodeState",
    "Sampling",
    "Selection",
    "continue_rows",
    "decode_loop",
    "decode_step",
    "encode_rows",
    "generate",
    "prefill",
]
