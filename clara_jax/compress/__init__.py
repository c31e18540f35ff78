"""The command that compresses a corpus into a store, and what it is made of."""

from clara_jax.compress.parts import Part, own_part, parse_part
from clara_jax.compress.reading import Reader, Texts, ahead, shard_bounds
from clara_jax.compress.writing import (
    Compressor,
    Counts,
    Task,
    find_model,
    model_place,
)

__all__ = [
    "Compressor",
    "Counts",
    "Part",
    "Reader",
    "Task",
    "Texts",
    "ahead",
    "find_model",
    "model_place",
    "own_part",
    "parse_part",
    "shard_bounds",
]
