"""The train step on a small regression, whose gradient can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax.clara import Network
from clara_jax.clara.batches import Batch
from clara_jax.config import OptimConfig
from clara_jax.sharding import make_mesh, named_sharding
from clara_jax.stages import make_loss
from clara_jax.testing import random_batch, toy_network
from clara_jax.train.state import TrainState, init_state, make_optimizer, make_schedule
from clara_jax.train.step import (
    make_eval_step,
    make_train_step,
    split_batch,
    total_weights,
)


def loss(network, batch, rng):
    """Two terms over rows of unequal weight; `rng` adds noise as dropout would."""
    backbone, adapters = network.backbone, network.adapters
    x = batch.vectors[:, 0, 0, :]
    noise = 0.0 if rng is None else jax.random.normal(rng, ())
    out = x @ (backbone["w"] + adapters["compressor"]["a"]) + adapters["memory"]
    mask = batch.candidate_mask[:, 0].astype(jnp.float32)
    sums = {"square": jnp.sum(mask[:, None] * (out + backbone["noise"] * noise) ** 2)}
    sums["plain"] = 0.1 * jnp.sum(out)
    weights = {"square": jnp.sum(mask), "plain": jnp.float32(out.size)}
    return sums, weights, {"big": (jnp.sum(mask[:, None] * out), jnp.sum(mask))}


def make_batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, 1), bool)
    mask[[0, 3, 4], 0] = False
    return Batch(
        vectors=rng.normal(size=(rows, 1, 1, 3)).astype(np.float32),
        candidate_mask=mask,
    )


def make_state(optimizer):
    trainable = {"compressor": {"a": jnp.zeros((3, 2))}}
    return init_state(trainable, optimizer, jax.random.key(7))


BACKBONE = {"w": jnp.arange(6.0).reshape(3, 2), "noise": 0.0}
FROZEN = Network(None, BACKBONE, {"memory": jnp.ones((1, 2))})
NOISY = FROZEN.replace(backbone={**BACKBONE, "noise": 1.0})


def make(accumulate=1, config=None):
    config = config or OptimConfig(learning_rate=0.1)
    schedule = make_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    step = make_train_step(loss, optimizer, schedule, accumulate=accumulate)
    return jax.jit(step, donate_argnums=0), make_state(optimizer)


def test_metrics_and_gradient_are_those_of_the_whole_batch():
    step, state = make()
    batch = make_batch()

    def total(adapters):
        sums, weights, _ = loss(FROZEN.with_adapters(adapters), batch, None)
        return sum(sums[t] / weights[t] for t in sums)

    value, grad = jax.value_and_grad(total)(state.trainable)
    new, metrics = step(state, FROZEN, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grad), rtol=1e-6)
    assert set(metrics) == {
        "loss",
        "loss/square",
        "loss/plain",
        "big",
        "grad_norm",
        "lr",
        "finite",
    }
    assert int(new.step) == 1
    assert set(new.trainable) == {"compressor"}


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_step_equals_the_whole_one(accumulate):
    # The rows' weights differ between microbatches: a mean of means would fail.
    whole, state = make()
    parts, same = make(accumulate)
    batch = make_batch()
    state, expected = whole(state, FROZEN, batch)
    same, got = parts(same, FROZEN, batch)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(
        same.opt_state[1][0].mu["compressor"]["a"],
        state.opt_state[1][0].mu["compressor"]["a"],
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def scp():
    """Two updates' worth of a real stage: toy model, loss, batch of unequal rows."""
    toy = toy_network()
    names = ("compressor", "generator", "memory")
    return toy, make_loss("scp"), names, random_batch("scp")


@pytest.mark.slow
def test_accumulation_is_exact_for_a_real_stage(scp):
    toy, loss, names, batch = scp
    schedule = make_schedule(OptimConfig(), 10)
    found = []
    for accumulate in (1, 2):
        # Plain descent with rate 1: the update is the gradient itself.
        descent = optax.sgd(1.0)
        step = make_train_step(loss, descent, schedule, accumulate=accumulate)
        trainable = {name: toy.adapters[name] for name in names}
        state = init_state(trainable, descent, jax.random.key(0))
        new, metrics = jax.jit(step)(state, toy.replace(adapters={}), batch)
        grads = jax.tree.map(jnp.subtract, state.trainable, new.trainable)
        found.append((grads, metrics))
    (grads, metrics), (in_parts, same) = found
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(in_parts), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a) + 1e-7
    for name in metrics:
        np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5, err_msg=name)


def test_adding_up_weights_costs_no_forward_pass(scp):
    toy, loss, _, batch = scp
    parts = split_batch(batch, 2)

    def weights(network, parts):
        return total_weights(loss, network, parts)

    compiled = jax.jit(weights).lower(toy, parts).compile()
    assert " dot(" not in compiled.as_text()


def test_microbatches_and_steps_draw_different_noise():
    step, state = make(accumulate=2)
    batch = make_batch()
    doubled = Batch(
        vectors=np.repeat(batch.vectors[:1], 8, 0), candidate_mask=np.ones((8, 1), bool)
    )
    rng = jax.random.fold_in(state.key, 0)
    draws = [float(jax.random.normal(jax.random.fold_in(rng, i), ())) for i in range(2)]
    assert draws[0] != draws[1]
    out = doubled.vectors[0, 0, 0] @ np.asarray(BACKBONE["w"]) + 1
    expected = np.mean([np.sum((out + d) ** 2) for d in draws])
    state, first = step(state, NOISY, doubled)
    np.testing.assert_allclose(first["loss/square"], expected, rtol=1e-5)
    _, second = step(state, NOISY, doubled)
    assert float(second["loss/square"]) != float(first["loss/square"])


def test_split_takes_every_other_row():
    batch = make_batch()
    parts = split_batch(jax.tree.map(jnp.asarray, batch), 2)
    np.testing.assert_array_equal(parts.vectors[1], batch.vectors[1::2])


def test_nothing_changes_after_a_step_that_is_not_finite():
    step, state = make()
    state, _ = step(state, FROZEN, make_batch())
    before = jax.device_get(state.saved())
    bad = make_batch()
    bad.vectors[1] = np.nan
    state, metrics = step(state, FROZEN, bad)
    assert not metrics["finite"]
    # A good batch after the bad one changes nothing either.
    state, metrics = step(state, FROZEN, make_batch(seed=1))
    assert metrics["finite"] and not state.healthy
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.saved()), before)
    assert TrainState.restored(state.saved()).healthy


def test_a_batch_without_weight_gives_no_loss_and_no_gradient():
    step, state = make()
    batch = make_batch()
    batch = batch.replace(candidate_mask=np.zeros_like(batch.candidate_mask))
    _, metrics = step(state, FROZEN, batch)
    assert float(metrics["loss/square"]) == 0 and np.isfinite(metrics["grad_norm"])
    assert np.isnan(metrics["big"])


def test_evaluation_drops_nothing_and_leaves_sums():
    _, state = make()
    evaluate = jax.jit(make_eval_step(loss))
    batch = make_batch()
    sums, weights, metrics = evaluate(state.trainable, NOISY, batch)
    expected = loss(NOISY.with_adapters(state.trainable), batch, None)
    np.testing.assert_allclose(sums["square"], expected[0]["square"], rtol=1e-6)
    assert float(weights["square"]) == 5 and set(metrics) == {"big"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_on_many_devices_give_the_same_step(accumulate):
    single, state = make(accumulate)
    batch = make_batch(16)
    state, expected = single(state, FROZEN, batch)

    mesh = make_mesh(devices=jax.devices()[: 8 // accumulate])
    everywhere = named_sharding(mesh)
    config = OptimConfig(learning_rate=0.1)
    schedule = make_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    step = jax.jit(
        make_train_step(loss, optimizer, schedule, accumulate=accumulate),
        donate_argnums=0,
        in_shardings=(everywhere,) * 2 + (named_sharding(mesh, "batch"),),
        out_shardings=everywhere,
    )
    other, frozen = jax.device_put((make_state(optimizer), FROZEN), everywhere)
    other, got = step(
        other, frozen, jax.device_put(batch, named_sharding(mesh, "batch"))
    )
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(
        other.trainable["compressor"]["a"],
        state.trainable["compressor"]["a"],
        rtol=1e-5,
    )
