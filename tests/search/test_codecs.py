import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.search.codecs import (
    CLIPS,
    CODECS,
    center_of,
    code_type,
    decode,
    encode,
    read_center,
)


def gaussians(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def round_trip(vectors, dtype):
    codes, scales = encode(vectors, dtype)
    assert codes.dtype == code_type(dtype, vectors.shape[-1])[0]
    found = decode(codes, scales, dtype, vectors.shape[-1])
    assert (found.dtype, found.shape) == (np.float32, vectors.shape)
    return found, scales


def test_float32_keeps_every_bit():
    vectors = gaussians(5, 3, 33) * 10.0 ** np.arange(-10, 23, dtype=np.float32)
    vectors[0, 0, :3] = 0, -0.0, np.finfo(np.float32).smallest_subnormal
    found, scales = round_trip(vectors, "float32")
    assert scales is None
    np.testing.assert_array_equal(found.view(np.uint32), vectors.view(np.uint32))
    assert center_of(vectors, "float32") == ""


def test_bfloat16_rounds_to_the_nearest():
    vectors = gaussians(5, 3, 33) * 10.0 ** np.arange(-10, 23, dtype=np.float32)
    found, scales = round_trip(vectors, "bfloat16")
    assert scales is None
    np.testing.assert_array_equal(
        found, vectors.astype(ml_dtypes.bfloat16).astype(np.float32)
    )
    assert (np.abs(found - vectors) <= np.abs(vectors) / 256).all()
    assert (found != vectors).any()


def test_bfloat16_keeps_bfloat16():
    vectors = gaussians(4, 2, 8).astype(ml_dtypes.bfloat16)
    found, _ = round_trip(vectors, "bfloat16")
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


def test_int8_errs_by_half_a_scale():
    vectors = gaussians(6, 4, 65) * 10.0 ** np.arange(-3, 3)[:, None, None]
    vectors = vectors.astype(np.float32)
    found, scales = round_trip(vectors, "int8")
    largest = np.abs(vectors).max(-1)
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
    error = np.abs(found - vectors)
    assert (error <= scales[..., None] * 0.50001).all()
    assert error.max() > 0
    np.testing.assert_allclose(np.abs(found).max(-1), largest, rtol=1e-6)


def test_int4_takes_the_clip_of_the_least_error():
    vectors = gaussians(50, 2, 96)
    vectors[::3, :, 0] *= 20  # one number that stands out
    found, scales = round_trip(vectors, "int4")
    error = np.square(found - vectors).sum(-1)
    plain = []
    for clip in CLIPS:
        step = np.abs(vectors).max(-1, keepdims=True) * clip / 7
        codes = np.clip(np.rint(vectors / step), -7, 7)
        plain.append(np.square(codes * step - vectors).sum(-1))
    # Each clip's scale is refined afterwards, so the result is a little better still.
    assert (error <= np.min(plain, 0) * 1.0001).all()
    assert (error >= np.min(plain, 0) * 0.9).all()
    # Not one clip serves all vectors.
    assert len(set(np.argmin(plain, 0).ravel())) > 2
    assert (np.abs(np.rint(found / scales[..., None])) <= 7).all()


def test_errors_on_gaussian_vectors():
    vectors = gaussians(40, 4, 256, seed=1)
    bounds = {"bfloat16": (0.001, 0.003), "int8": (0.003, 0.009), "int4": (0.08, 0.115)}
    for dtype, (low, high) in bounds.items():
        found, _ = round_trip(vectors, dtype)
        error = np.linalg.norm(found - vectors) / np.linalg.norm(vectors)
        assert low < error < high, dtype


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 2, 1), (2, 1, 7), (2, 3, 8)])
def test_shapes(dtype, shape):
    vectors = gaussians(*shape)
    found, _ = round_trip(vectors, dtype)
    if vectors.size:
        assert np.abs(found - vectors).max() < 0.3
        assert (np.sign(np.rint(found * 4)) * vectors >= 0).all()


@pytest.mark.parametrize("dtype", CODECS)
def test_zeros_stay_zeros(dtype):
    vectors = gaussians(3, 2, 5)
    vectors[1] = 0
    found, _ = round_trip(vectors, dtype)
    assert (found[1] == 0).all()
    assert (found[0] != 0).any()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_tiny_and_huge_numbers(dtype):
    vectors = (
        gaussians(4, 1, 16) * np.float32([1e-38, 1e-30, 1e30, 3e37])[:, None, None]
    )
    found, _ = round_trip(vectors, dtype)
    assert np.isfinite(found).all()
    unit = np.abs(vectors).max(-1, keepdims=True)
    np.testing.assert_allclose(found[1:] / unit[1:], vectors[1:] / unit[1:], atol=0.15)


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("width", [7, 8])
def test_jax_decodes_the_same_bits(dtype, width):
    codes, scales = encode(gaussians(3, 2, width), dtype)
    jitted = jax.jit(lambda c, s: decode(c, s, dtype, width, jnp))
    scales_there = None if scales is None else jnp.asarray(scales)
    np.testing.assert_array_equal(
        jitted(jnp.asarray(codes), scales_there), decode(codes, scales, dtype, width)
    )


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_parts_give_the_same_codes(dtype, monkeypatch):
    vectors = gaussians(9, 3, 10)
    whole = encode(vectors, dtype)
    monkeypatch.setattr("clara_jax.search.codecs._AT_ONCE", 41)
    for one, other in zip(whole, encode(vectors, dtype), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 28), ("bfloat16", 14), ("int8", 7), ("int4", 4)]
)
def test_bytes_of_a_vector(dtype, size):
    codes, _ = encode(gaussians(1, 1, 7), dtype)
    assert codes.nbytes == size


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(dtype, value):
    vectors = gaussians(2, 2, 4)
    vectors[1, 1, 3] = value
    with pytest.raises(ClaraError, match="not finite; the model is damaged"):
        encode(vectors, dtype)


def test_unknown_codec():
    with pytest.raises(
        ClaraError, match="no codec 'int2'.*float32, bfloat16, int8, int4"
    ):
        encode(gaussians(1, 1, 2), "int2")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_vectors_have_in_common_costs_no_steps(dtype):
    rng = np.random.default_rng(3)
    common = 10 * rng.standard_normal((2, 32)).astype(np.float32)
    vectors = common + rng.standard_normal((100, 2, 32)).astype(np.float32)
    center = read_center(center_of(vectors[:20], dtype), (2, 32))

    def error(center):
        codes, scales = encode(vectors, dtype, center)
        found = decode(codes, scales, dtype, 32, center=center)
        return np.sqrt(np.mean(np.square(found - vectors)))

    assert error(center) < error(None) / 3
    assert center_of(vectors, "bfloat16") == "" and read_center("", (2, 32)) is None
