"""How document vectors are kept: bfloat16, int8 or int4, with a scale per vector.

An M-vector document of width D takes 2·M·D, M·D + 4·M or M·D/2 + 4·M bytes. Vectors of
one model have much in common, in which the few steps of int8 and int4 would be spent;
so these keep what a vector has besides a store's `center`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

from clara_jax.errors import ClaraError

CODECS = ("bfloat16", "int8", "int4")
"""From the widest to the narrowest."""

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Where int4 may cut a vector's numbers off, in parts of the largest of them."""

_AT_ONCE = 1 << 17
"""Numbers quantized together: few enough for the caches."""


def check_codec(dtype: str) -> None:
    """Refuse a codec that there is not.

    Raises:
      ClaraError: `dtype` is none of `CODECS`.
    """
    if dtype not in CODECS:
        raise ClaraError(
            f"there is no codec '{dtype}' for document vectors; give one of "
            f"{', '.join(CODECS)}"
        )


def code_type(dtype: str, width: int) -> tuple[np.dtype, int]:
    """Type of the codes, and how many of them hold a vector of `width` numbers."""
    check_codec(dtype)
    if dtype == "bfloat16":
        return np.dtype(np.uint16), width
    if dtype == "int8":
        return np.dtype(np.int8), width
    return np.dtype(np.uint8), (width + 1) // 2


def center_of(vectors: Float[np.ndarray, "n M D"], dtype: str) -> str:
    """What vectors have in common: their mean in bfloat16, as text for JSON.

    Args:
      vectors: some of those to keep; a few dozen will do.
      dtype: the codec; for bfloat16 the text is empty.

    Raises:
      ClaraError: there is no such codec, or a number is not finite.
    """
    check_codec(dtype)
    _check_finite(vectors)
    if dtype == "bfloat16" or not len(vectors):
        return ""
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    return base64.b64encode(mean.astype(ml_dtypes.bfloat16).tobytes()).decode()


def read_center(text: str, shape: Sequence[int]) -> Float[np.ndarray, "M D"] | None:
    """Read a text of `center_of`; None for an empty one.

    Raises:
      ValueError: it is none of this shape.
    """
    if not text:
        return None
    data = base64.b64decode(text, validate=True)
    bits = np.frombuffer(data, ml_dtypes.bfloat16).reshape(shape)
    return bits.astype(np.float32)


def encode(
    vectors: Float[np.ndarray, "*n D"],
    dtype: str,
    center: Float[np.ndarray, "M D"] | None = None,
) -> tuple[Shaped[np.ndarray, "*n W"], Float[np.ndarray, "*n"] | None]:
    """Turn vectors into codes.

    Args:
      vectors: any number of leading axes.
      dtype: one of `CODECS`. bfloat16 rounds to the nearest; int8 divides by a scale
        that makes the largest number 127; int4 tries `CLIPS` of the largest number and
        keeps the one with the least squared error.
      center: is subtracted first; int8 and int4 of ``[n, M, D]`` vectors only.

    Returns:
      Codes (uint16: bits of bfloat16; int8; uint8: numbers ``j`` and ``j + ceil(D/2)``
      in the low and high half of byte ``j``) and float32 scales, None for bfloat16.

    Raises:
      ClaraError: there is no such codec, or a number is not finite.
    """
    check_codec(dtype)
    _check_finite(vectors)
    if dtype == "bfloat16":
        return vectors.astype(ml_dtypes.bfloat16).view(np.uint16), None
    if center is not None:
        vectors = np.asarray(vectors, np.float32) - center
    *leading, width = vectors.shape
    kind, length = code_type(dtype, width)
    codes = np.empty((*leading, length), kind)
    scales = np.empty(leading, np.float32)
    flat = vectors.reshape(-1, width)
    flat_codes, flat_scales = codes.reshape(-1, length), scales.reshape(-1)
    step = max(1, _AT_ONCE // max(1, width))
    quantize = _int8 if dtype == "int8" else _int4
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        found = quantize(np.asarray(flat[part], np.float32))
        flat_codes[part], flat_scales[part] = found
    return codes, scales


def decode(
    codes: Shaped[Any, "*n W"],
    scales: Float[Any, "*n"] | None,
    dtype: str,
    width: int,
    xp: Any = np,
    center: Float[Any, "M D"] | None = None,
) -> Float[Any, "*n D"]:
    """Turn codes back into vectors.

    Args:
      codes, scales: as `encode` gives them.
      dtype: the codec, one of `CODECS`.
      width: D; int4 needs it, since two numbers share a byte.
      xp: ``numpy`` or ``jax.numpy``, whose arrays the codes are; works under
        ``jax.jit``.
      center: what `encode` has subtracted.

    Returns:
      float32 vectors.
    """
    if dtype == "bfloat16":
        return (codes.astype(xp.uint32) << 16).view(xp.float32)
    if dtype == "int8":
        numbers = codes.astype(xp.float32)
    else:
        halves = xp.concatenate([codes & 15, codes >> 4], axis=-1)[..., :width]
        numbers = halves.astype(xp.float32) - 8
    assert scales is not None
    vectors = numbers * scales[..., None]
    return vectors if center is None else vectors + center


def _check_finite(vectors: Float[np.ndarray, "..."]) -> None:
    if not np.isfinite(vectors).all():
        raise ClaraError(
            "document vectors hold numbers that are not finite; the model is damaged, "
            "or its compute type is too narrow"
        )


def _int8(
    vectors: Float[np.ndarray, "n D"],
) -> tuple[Shaped[np.ndarray, "n W"], Float[np.ndarray, "n"]]:
    scales = np.abs(vectors).max(-1, initial=0) / np.float32(127)
    codes = np.rint(vectors / _divisor(scales)[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scales


def _int4(
    vectors: Float[np.ndarray, "n D"],
) -> tuple[Shaped[np.ndarray, "n W"], Float[np.ndarray, "n"]]:
    """Codes -7 to 7, kept as 1 to 15.

    For given codes the best scale is a projection; so each clip is tried with its own.
    """
    largest = np.abs(vectors).max(-1, initial=0)
    # In parts of the largest number, so that no square overflows.
    units = vectors / _divisor(largest)[:, None]
    best = np.zeros_like(units)
    scales = np.zeros_like(largest)
    gains = np.full_like(largest, -1)
    for clip in CLIPS:
        codes = np.clip(np.rint(units * np.float32(7 / clip)), -7, 7)
        product = np.einsum("nd,nd->n", units, codes)
        square = _divisor(np.einsum("nd,nd->n", codes, codes))
        # The squared error is |units|² - gain.
        gain = product * product / square
        better = gain > gains
        best[better] = codes[better]
        scales[better] = (product / square)[better]
        gains[better] = gain[better]
    scales *= largest
    numbers = (best + 8).astype(np.uint8)
    half = (numbers.shape[1] + 1) // 2
    packed = numbers[:, :half].copy()
    high = numbers[:, half:]
    packed[:, : high.shape[1]] |= high << 4
    # The last byte's free half holds the code of zero.
    packed[:, high.shape[1] :] |= 8 << 4
    return packed, scales


def _divisor(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.where(values > 0, values, np.float32(1))
