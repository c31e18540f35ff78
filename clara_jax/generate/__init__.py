"""Decoding, and answers from compressed documents."""

from clara_jax.generate.answering import AnswerConfig, Clara, Selection
from clara_jax.generate.batched import Spoken, encode_rows
from clara_jax.generate.decode import (
    DecodeConfig,
    DecodeState,
    Sampling,
    decode_loop,
    decode_step,
    prefill,
)

__all__ = [
    "AnswerConfig",
    "Clara",
    "DecodeConfig",
    "DecodeState",
    "Sampling",
    "Selection",
    "Spoken",
    "decode_loop",
    "decode_step",
    "encode_rows",
    "prefill",
]
