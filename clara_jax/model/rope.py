"""Rotary position embedding, with the stretched variants that backbones use.

Sources: Su et al., arXiv 2104.09864 (rotary); Peng et al., arXiv 2309.00071 (yarn);
Ding et al., arXiv 2402.13753 (longrope); Llama 3.1 model card (llama3).
"""

import math

import jax.numpy as jnp
import numpy as np

from clara_jax.config import RopeConfig
from clara_jax.shapes import Array, Bool, Float, Int


def _inverse_wavelengths(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Return radians per position of every rotated pair, for ``longrope`` unstretched.

    Float64 ``[P]``; numbers of a head beyond ``2 P`` pass through.
    """
    width = int(head_dim * rope.fraction)
    base = rope.theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    if rope.kind == "linear":
        return base / rope.factor
    original = rope.original_max_position
    if rope.kind == "llama3":
        wavelength = 2 * np.pi / base
        low, high = original / rope.low_frequency, original / rope.high_frequency
        band = rope.high_frequency - rope.low_frequency
        blend = (original / wavelength - rope.low_frequency) / band
        mixed = (1 - blend) * base / rope.factor + blend * base
        stretched = np.where(wavelength > low, base / rope.factor, mixed)
        return np.where(wavelength < high, base, stretched)
    if rope.kind == "yarn":

        def pair_of(rotations: float) -> float:
            ratio = original / (rotations * 2 * np.pi)
            return width * math.log(ratio) / (2 * math.log(rope.theta))

        first = max(math.floor(pair_of(rope.beta_fast)), 0)
        last = min(math.ceil(pair_of(rope.beta_slow)), width - 1)
        ramp = (np.arange(width // 2) - first) / max(last - first, 1e-3)
        keep = 1 - np.clip(ramp, 0, 1)
        return base / rope.factor * (1 - keep) + base * keep
    return base


def attention_factor(rope: RopeConfig) -> float:
    """Return the multiplier of cosines and sines."""
    if rope.attention_factor:
        return rope.attention_factor
    if rope.kind == "yarn":
        return 0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
    if rope.kind == "longrope":
        factor = rope.factor or rope.max_position / rope.original_max_position
        if factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(factor) / math.log(rope.original_max_position))
    return 1.0


def takes_long_factors(
    rope: RopeConfig, positions: Int[Array, "B T"]
) -> Bool[Array, " B"]:
    """Return which rows are longer than what ``longrope`` was first trained for."""
    return jnp.max(positions, axis=-1) >= rope.original_max_position


def rope_tables(
    rope: RopeConfig,
    head_dim: int,
    positions: Int[Array, "B T"],
    long: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T P"], Float[Array, "B T P"]]:
    """Return cosines and sines of P rotated pairs per head, float32.

    Args:
      rope: kind and sizes.
      head_dim: H.
      positions: position of each token in its own row, padding not counted.
      long: rows that take ``longrope``'s long factors; by default those of more than
        ``original_max_position`` tokens.
    """
    frequency = jnp.asarray(_inverse_wavelengths(rope, head_dim), jnp.float32)
    frequency = frequency[None, :]
    if rope.kind == "longrope":
        if long is None:
            long = takes_long_factors(rope, positions)
        factors = jnp.where(
            long[:, None],
            jnp.asarray(rope.long_factors, jnp.float32)[None, :],
            jnp.asarray(rope.short_factors, jnp.float32)[None, :],
        )
        frequency = frequency / factors
    angles = positions[..., None].astype(jnp.float32) * frequency[:, None, :]
    scale = attention_factor(rope)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T P"], sin: Float[Array, "B T P"]
) -> Float[Array, "B T N H"]:
    """Rotate each head's leading ``2 P`` numbers, halves paired (x[i], x[i + P])."""
    pairs = cos.shape[-1]
    cos, sin = cos[:, :, None, :].astype(x.dtype), sin[:, :, None, :].astype(x.dtype)
    first, second, rest = jnp.split(x, (pairs, 2 * pairs), axis=-1)
    return jnp.concatenate(
        (first * cos - second * sin, second * cos + first * sin, rest), axis=-1
    )
