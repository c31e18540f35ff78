"""The command that compresses a corpus into a store, and what it is made of."""

from clara_jax.compress.reading import Reader, Texts, ahead, shard_bounds
from clara_jax.compress.writing import (
    Compressor,
    Counts,
    Part,
    Task,
    find_model,
    model_place,
    own_part,
    parse_part,
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
