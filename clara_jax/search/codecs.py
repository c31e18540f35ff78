"""How document vectors are kept: float32, bfloat16, or int8 or int4 with scales.

int8 and int4 keep a vector less the store's `center`, which all vectors of a model have
in common.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped

from clara_jax.errors import ClaraError

_BITS = {"float32": np.uint32, "bfloat16": np.uint16, "int8": np.int8, "int4": np.uint8}
CODECS = tuple(_BITS)  # from the widest to the narrowest
FLOATS = ("float32", "bfloat16")  # which have no scales

# Where int4 may cut a vector's numbers off, in parts of the largest of them.
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# Numbers quantized, and decoded, together: few enough for the caches.
_AT_ONCE, _DECODED = 1 << 17, 1 << 18

Codes = Shaped[np.ndarray, "*n W"]
Scales = Float[np.ndarray, "*n"]


def code_type(dtype: str, width: int) -> tuple[np.dtype, int]:
    """Return the type of codes, and how many hold a vector of `width` numbers.

    Raises:
      ClaraError: there is no such codec.
    """
    if dtype not in CODECS:
        what = f"there is no codec '{dtype}' for document vectors"
        raise ClaraError(f"{what}; give one of {', '.join(CODECS)}")
    return np.dtype(_BITS[dtype]), (width + 1) // 2 if dtype == "int4" else width


def center_of(vectors: Float[np.ndarray, "n M D"], dtype: str) -> str:
    """Return the mean of some dozens of vectors as text; empty for types of floats.

    Raises:
      ClaraError: a number is not finite.
    """
    _check_finite(vectors)
    if dtype in FLOATS or not len(vectors):
        return ""
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    return base64.b64encode(mean.astype(ml_dtypes.bfloat16).tobytes()).decode()


def read_center(text: str, shape: Sequence[int]) -> Float[np.ndarray, "M D"] | None:
    """Read what `center_of` returned; None for an empty text."""
    if not text:
        return None
    bits = np.frombuffer(base64.b64decode(text), ml_dtypes.bfloat16)
    return bits.reshape(shape).astype(np.float32)


def encode(
    vectors: Float[np.ndarray, "*n D"],
    dtype: str,
    center: Float[np.ndarray, "M D"] | None = None,
) -> tuple[Codes, Scales | None]:
    """Turn vectors, less the `center`, into codes.

    float32 keeps all bits, bfloat16 rounds to the nearest; int8 makes the largest
    number 127; int4 keeps the one of `CLIPS` with the least squared error.

    Returns:
      Codes (bits of floats; int8; uint8: numbers ``j`` and ``j + ceil(D/2)`` in the low
      and high half of byte ``j``) and scales, None for floats.

    Raises:
      ClaraError: there is no such codec, or a number is not finite.
    """
    *leading, width = vectors.shape
    kind, length = code_type(dtype, width)
    _check_finite(vectors)
    if dtype in FLOATS:
        own = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
        return np.ascontiguousarray(vectors, own).view(kind), None
    codes, scales = np.empty((*leading, length), kind), np.empty(leading, np.float32)
    step = max(1, _AT_ONCE // max(1, vectors[:1].size))
    for start in range(0, len(vectors), step):
        part = slice(start, start + step)
        wide = np.asarray(vectors[part], np.float32)
        wide = wide if center is None else wide - center
        if dtype == "int4":
            codes[part], scales[part] = _int4(wide)
        else:
            scales[part] = np.abs(wide).max(-1, initial=0) / np.float32(127)
            rounded = np.rint(wide / _divisor(scales[part])[..., None])
            codes[part] = np.clip(rounded, -127, 127)
    return codes, scales


def decode(
    codes: Shaped[Any, "*n W"],
    scales: Float[Any, "*n"] | None,
    dtype: str,
    width: int,
    xp: Any = np,
    center: Float[Any, "M D"] | None = None,
) -> Float[Any, "*n D"]:
    """Turn codes, arrays of `xp` (``numpy`` or ``jax.numpy``), back into vectors."""
    if dtype == "float32":
        return codes.view(xp.float32)
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


def decode_parts(
    codes: Codes, scales: Scales | None, dtype: str, width: int
) -> Iterator[tuple[slice, Float[np.ndarray, "n M D"]]]:
    """Decode consecutive rows, few enough for the caches; the center is not added."""
    step = max(1, _DECODED // max(1, math.prod(codes.shape[1:-1]) * width))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        scale = None if scales is None else scales[part]
        yield part, decode(codes[part], scale, dtype, width)


def _check_finite(vectors: Float[np.ndarray, "..."]) -> None:
    if not np.isfinite(vectors).all():
        raise ClaraError(
            "document vectors hold numbers that are not finite; the model is damaged, "
            "or its compute type is too narrow"
        )


def _int4(vectors: Float[np.ndarray, "*n D"]) -> tuple[Codes, Scales]:
    """Pack codes -7 to 7, kept as 1 to 15, two to a byte."""
    largest = np.abs(vectors).max(-1, initial=0)
    # In parts of the largest number, so that no square overflows.
    units = vectors / _divisor(largest)[..., None]
    best = np.zeros_like(units)
    scales = np.zeros_like(largest)
    gains = np.full_like(largest, -1)
    for clip in CLIPS:
        codes = np.clip(np.rint(units * np.float32(7 / clip)), -7, 7)
        # For given codes the best scale is a projection; the error is |units|² - gain.
        product = np.einsum("...d,...d->...", units, codes)
        square = _divisor(np.einsum("...d,...d->...", codes, codes))
        gain = product * product / square
        better = gain > gains
        best[better] = codes[better]
        scales[better] = (product / square)[better]
        gains[better] = gain[better]
    scales *= largest
    *leading, width = units.shape
    # With an odd width, the last byte's free half holds the code of zero.
    numbers = np.full((*leading, width + width % 2), 8, np.uint8)
    numbers[..., :width] = best + 8
    low, high = np.split(numbers, 2, axis=-1)
    return low | high << 4, scales


def _divisor(values: Scales) -> Scales:
    return np.where(values > 0, values, np.float32(1))
