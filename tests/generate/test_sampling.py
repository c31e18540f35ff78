"""Draws: greedy, nucleus, and independence of the rows beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.generate.decode import Sampling, fold_step, nucleus, row_keys, sample


def test_greedy_takes_the_best():
    logits = jnp.array([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    np.testing.assert_array_equal(sample(logits, None, Sampling()), [1, 0])


def test_nucleus_keeps_the_fewest_that_reach_the_share():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.3]]))
    np.testing.assert_array_equal(
        jnp.isfinite(nucleus(logits, 0.7)), [[False, True, False, True]]
    )
    np.testing.assert_array_equal(
        jnp.isfinite(nucleus(logits, 1e-6)), [[False, True, False, False]]
    )
    np.testing.assert_allclose(nucleus(logits, 1.0), logits)


def test_draws_follow_the_temperature():
    logits = jnp.tile(jnp.array([0.0, 1.0]), (2000, 1))
    tokens = sample(logits, row_keys(0, jnp.arange(2000)), Sampling(temperature=0.5))
    share = jax.nn.softmax(jnp.array([0.0, 2.0]))[1]
    np.testing.assert_allclose(tokens.mean(), share, atol=0.03)


def test_a_row_does_not_depend_on_its_neighbours():
    logits = jax.random.normal(jax.random.key(1), (6, 50))
    settings = Sampling(temperature=1.5, top_p=0.9)
    whole = sample(
        logits, fold_step(row_keys(3, jnp.arange(6)), jnp.int32(4)), settings
    )
    part = sample(
        logits[:2], fold_step(row_keys(3, jnp.arange(2)), jnp.int32(4)), settings
    )
    np.testing.assert_array_equal(whole[:2], part)


@pytest.mark.parametrize(
    "values", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 2.0}]
)
def test_bad_settings(values):
    with pytest.raises(ClaraError, match=next(iter(values))):
        Sampling(**values)
