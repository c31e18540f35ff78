"""Keys and values of the tokens already read."""

import jax.numpy as jnp
from flax import struct

from clara_jax.config import ModelConfig
from clara_jax.shapes import Array, Bool, Float, Int
from clara_jax.sharding import place

CACHE_AXES = ("layers", "batch", None, "kv_heads", None)
"""Logical axes of cached keys and values."""


@struct.dataclass
class Cache:
    """Keys and values of all layers, with room for tokens to come.

    Attributes:
      key, value: ``[L, B, S, K, H]``, one slot per token, in reading order.
      positions: ``[B, S]`` position of each slot's token in its row.
      length: slots filled so far, one number for the whole batch.
      long: ``[B]`` rows that read with ``longrope``'s long factors; settled by the
        first call, since cached keys cannot be turned again.
    """

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]
    long: Bool[Array, " B"]


def zeros_cache(config: ModelConfig, batch: int, slots: int) -> Cache:
    """An empty cache for `batch` rows of at most `slots` tokens."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    nothing = jnp.zeros(shape, jnp.dtype(config.dtype))
    return Cache(
        key=place(nothing, *CACHE_AXES),
        value=place(nothing, *CACHE_AXES),
        positions=jnp.zeros((batch, slots), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        long=jnp.zeros((batch,), bool),
    )
