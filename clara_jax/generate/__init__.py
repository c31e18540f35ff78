"""Decoding, and answers from compressed documents."""

from clara_jax.generate.answering import Clara, Selection
from clara_jax.generate.batched import (
    AnswerConfig,
    Spoken,
    encode_rows,
    make_compressor,
)
from clara_jax.generate.decode import DecodeConfig, Sampling, decode_loop, prefill

__all__ = [
    "AnswerConfig",
    "Clara",
    "DecodeConfig",
    "Sampling",
    "Selection",
    "Spoken",
    "decode_loop",
    "encode_rows",
    "make_compressor",
    "prefill",
]
