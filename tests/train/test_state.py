"""Schedule, decay and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.config import OptimConfig
from clara_jax.train.state import make_optimizer, make_schedule


def rates(config, steps):
    return np.asarray(jax.vmap(make_schedule(config, steps))(jnp.arange(steps)))


def test_cosine_rises_and_ends_at_its_floor():
    config = OptimConfig(learning_rate=2.0, warmup_fraction=0.1, final_fraction=0.1)
    got = rates(config, 50)
    np.testing.assert_allclose(got[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
    assert got.argmax() == 4
    np.testing.assert_allclose(got[-1], 0.2, rtol=1e-5)
    progress = (np.arange(5, 50) - 4) / 45
    expected = 0.2 + 0.9 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose(got[5:], expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_short_runs_learn_from_the_first_step(steps):
    assert np.all(rates(OptimConfig(), steps) > 0)


def test_constant_stays_at_the_peak_after_warmup():
    config = OptimConfig(learning_rate=3.0, schedule="constant", warmup_fraction=0.2)
    np.testing.assert_allclose(rates(config, 10), [1.5] + [3.0] * 9)


def test_only_matrices_decay():
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0.0)
    optimizer = make_optimizer(config, lambda count: jnp.float32(0.1))
    params = {
        "layers": {"norm": {"scale": jnp.ones((2, 3))}, "up": {"a": jnp.ones((2, 3))}},
        "memory": jnp.ones((2, 3)),
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["layers"]["norm"]["scale"], 1.0)
    np.testing.assert_allclose(new["layers"]["up"]["a"], 0.95, rtol=1e-6)
    np.testing.assert_allclose(new["memory"], 0.95, rtol=1e-6)


def test_gradients_are_clipped_by_their_common_norm():
    schedule = make_schedule(OptimConfig(), 10)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([30.0, 0.0]), "b": jnp.array([0.0, 40.0])}
    clipped = make_optimizer(OptimConfig(clip_norm=1.0), schedule)
    _, state = clipped.update(grads, clipped.init(params), params)
    np.testing.assert_allclose(state[1][0].mu["a"][0], 0.1 * 0.6, rtol=1e-5)
    free = make_optimizer(OptimConfig(clip_norm=0.0), schedule)
    _, state = free.update(grads, free.init(params), params)
    np.testing.assert_allclose(state[1][0].mu["a"][0], 3.0, rtol=1e-5)
