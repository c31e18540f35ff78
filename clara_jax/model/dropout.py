"""Dropout whose mask costs a few integer operations an element.

Every adapter drops out its own inputs: for Mistral-7B nine times the model's width per
token and layer. JAX's threefry takes about a hundred operations for each of them, which
a TPU does outside its matrix units, and most of the time that its compiler needs for a
train step. A mask needs no more than bits that are spread well: here an element's place
is hashed together with the key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from clara_jax.shapes import Array, Float, Key, UInt


def dropout(
    x: Float[Array, "*rows D"], key: Key, rate: float
) -> Float[Array, "*rows D"]:
    """Set each element to zero with probability `rate` and scale the others up.

    What is dropped depends on the key and on an element's place in `x` alone, never on
    how the array is split over devices.

    Args:
      x: rows of features.
      key: typed key of a threefry kind, the default one.
      rate: in [0, 1).

    Returns:
      An array like `x` with the same expectation.
    """
    first, second = jax.random.key_data(key)
    rows = jnp.zeros((*x.shape[:-1], 1), jnp.uint32)
    for axis, size in enumerate(x.shape[:-1]):
        place = jax.lax.broadcasted_iota(jnp.uint32, rows.shape, axis)
        rows = rows * jnp.uint32(size) + place
    rows = _mixed(_mixed(rows ^ first) ^ second)
    columns = _mixed(_mixed(jnp.arange(x.shape[-1], dtype=jnp.uint32) ^ second) ^ first)
    columns = columns.reshape((1,) * (x.ndim - 1) + (-1,))
    kept = _mixed(rows ^ columns) >= jnp.uint32(round(rate * 2**32))
    scale = jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(kept, x * scale, jnp.zeros_like(x))


def _mixed(bits: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """A bijection of 32-bit words in which each bit moves all others.

    Source: C. Wellons, "Prospecting for hash functions" (2018): lowbias32.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
