"""The axis legend and the array types of every public signature.

| letter | axis |
|---|---|
| B | batch |
| T | query length |
| S | key length |
| D | model width |
| N | heads |
| K | key/value heads |
| G | query heads per key/value head |
| H | head width |
| F | feed-forward width |
| V | vocabulary, special rows included |
| E | special rows (memory tokens, AE, ENC, SEP) |
| R | LoRA rank |
| M | memory vectors per document |
| C | candidate documents |
| J | selected documents |
| L | layers |
| P | rotated pairs of a head |
"""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

Params = Any
"""A nested dict of arrays."""

Key = jax.Array
"""A key of ``jax.random.key``."""

TokenIds = Int[Array, "*batch T"]
Hidden = Float[Array, "*batch T D"]
Logits = Float[Array, "*batch T V"]
Vectors = Float[Array, "*batch M D"]
Scores = Float[Array, "B C"]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Hidden",
    "Int",
    "Key",
    "Logits",
    "Params",
    "Scores",
    "Shaped",
    "TokenIds",
    "UInt",
    "Vectors",
]
