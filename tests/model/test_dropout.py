"""Masks of dropout: their share, their independence, their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.model.layers import dropout
from clara_jax.sharding import make_mesh, named_sharding

RATE = 0.1


def _dropped(key: int, shape=(16, 33, 256)) -> np.ndarray:
    """What was dropped, less the expected share, in standard deviations."""
    kept = np.asarray(dropout(jnp.ones(shape), jax.random.key(key), RATE)) != 0
    return (~kept - RATE) / np.sqrt(RATE * (1 - RATE))


def test_what_is_kept_is_scaled():
    x = jax.random.normal(jax.random.key(1), (8, 64), jnp.bfloat16)
    found = dropout(x, jax.random.key(0), RATE)
    assert found.dtype == jnp.bfloat16
    kept = np.asarray(found != 0)
    assert 0 < kept.sum() < kept.size
    scaled = np.asarray(x * jnp.asarray(1 / (1 - RATE), x.dtype))
    np.testing.assert_array_equal(np.asarray(found)[kept], scaled[kept])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2,), (0, 1), (1, 2)])
def test_the_share_is_that_of_chance(axes):
    """Of all, of each row, of each feature, of each example."""
    dropped = _dropped(0)
    count = np.prod([dropped.shape[axis] for axis in axes])
    means = dropped.mean(axes) * np.sqrt(count)
    assert np.abs(means).max() < 5
    if means.size > 1:
        assert 0.5 < means.var() < 1.5


@pytest.mark.parametrize("other", [0, 1])
def test_neighbours_and_other_keys_tell_nothing(other):
    one, two = _dropped(0), _dropped(other)
    for axis in range(3):
        for step in (1, 2, 8):
            moved = np.roll(two, step, axis)
            assert abs((one * moved).mean() * np.sqrt(one.size)) < 5
    if other:
        assert abs((one * two).mean() * np.sqrt(one.size)) < 5


def test_rows_drop_alike_by_chance_only():
    rows = _dropped(0).reshape(-1, 256)
    products = (rows @ rows.T)[np.triu_indices(len(rows), 1)] / np.sqrt(256)
    assert 0.9 < products.var() < 1.1
    assert np.abs(products).max() < 8


def test_the_mask_is_the_same_however_the_array_is_split():
    x, key = jnp.ones((8, 4, 16)), jax.random.key(3)
    whole = np.asarray(dropout(x, key, RATE))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    split = jax.device_put(x, named_sharding(mesh, "batch", None, "heads"))
    np.testing.assert_array_equal(
        jax.jit(dropout, static_argnums=2)(split, key, RATE), whole
    )


def test_gradients_go_through_what_is_kept():
    x, key = jnp.ones((4, 32)), jax.random.key(0)
    slope = jax.grad(lambda x: dropout(x, key, RATE).sum())(x)
    np.testing.assert_array_equal(slope, dropout(x, key, RATE))
