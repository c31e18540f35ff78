"""The same step on one device and on meshes of several: equal numbers, split arrays."""

import functools

import jax
import numpy as np
import optax
import pytest

from clara_jax.config import OptimConfig, SelectionConfig
from clara_jax.model import logical_axes
from clara_jax.sharding import make_mesh, named_sharding, tree_shardings
from clara_jax.stages import make_loss
from clara_jax.testing import random_batch, toy_network
from clara_jax.train.state import init_state, make_optimizer, make_schedule
from clara_jax.train.step import compile_on_mesh, make_train_step

TRAINS = {
    "scp": ("compressor", "generator", "memory"),
    "instruct": ("compressor", "generator"),
    "end_to_end": ("reasoner", "generator"),
    "rerank": ("reasoner",),
}
MESHES = {
    "two devices": {"fsdp": 2},
    "data": {"data": 4},
    "fsdp": {"data": 1, "fsdp": 4},
    "tensor": {"data": 1, "fsdp": 1, "tensor": 4},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
    "slices": {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2},
}
SHOWN = {("scp", "mixed"), ("end_to_end", "slices")}


def one_step(stage, sizes):
    """A step on a mesh; an empty one is a single device."""
    wanted = int(np.prod([max(size, 1) for size in sizes.values()], initial=1))
    mesh = make_mesh(**sizes, devices=jax.devices()[:wanted])
    toy = _with_wide_rows(toy_network(tied=False))
    config = OptimConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    loss = make_loss(
        stage,
        mse_weight=0.1,
        selection=SelectionConfig(top_k=3, temperature=0.2),
    )
    step = make_train_step(loss, optimizer, make_schedule(config, 10))
    trainable = {name: toy.adapters[name] for name in TRAINS[stage]}
    frozen = {n: tree for n, tree in toy.adapters.items() if n not in trainable}
    state = init_state(trainable, optimizer, jax.random.key(3))
    given = state, toy.replace(adapters=frozen)
    shardings = tree_shardings(mesh, given, logical_axes)
    given = jax.device_put(given, shardings)
    batch = random_batch(stage, rows=8)
    run = compile_on_mesh(step, mesh, given[0])
    with jax.set_mesh(mesh):
        state, metrics = run(
            *given, jax.device_put(batch, named_sharding(mesh, "batch"))
        )
    # A tenth of the gradients, as they are after clipping.
    moments = optax.tree.get(state.opt_state, "mu")
    return jax.device_get((state.trainable, moments, metrics)), state, given[1].backbone


@functools.cache
def alone(stage):
    """Numbers of one device."""
    return one_step(stage, {})[0]


def _with_wide_rows(toy):
    """Embeddings near unit size: the norm's slope would blow up rounding otherwise."""
    params = dict(toy.backbone["params"])
    params["embed"] = jax.tree.map(lambda x: 50 * x, params["embed"])
    return toy.replace(
        backbone={**toy.backbone, "params": params},
        adapters={**toy.adapters, "memory": 50 * toy.adapters["memory"]},
    )


CASES = [
    pytest.param(
        stage,
        name,
        # One of each here, all of them where there is time.
        marks=() if (stage, name) in SHOWN else pytest.mark.slow,
    )
    for stage in TRAINS
    for name in MESHES
]


@pytest.mark.parametrize(("stage", "name"), CASES)
def test_meshes_give_the_numbers_of_one_device(stage, name):
    weights, gradients, expected = alone(stage)
    (split, moments, metrics), _, _ = one_step(stage, MESHES[name])
    for key in expected:
        np.testing.assert_allclose(
            metrics[key], expected[key], rtol=1e-5, atol=1e-7, err_msg=key
        )
    # The whole gradient, and each array of it that is more than rounding.
    size = norm(jax.tree.leaves(gradients))
    both = pairs(moments, gradients)
    assert norm([x - y for x, y in both]) <= 1e-5 * size
    for ours, theirs in both:
        assert norm([ours - theirs]) <= 2e-5 * norm([theirs]) + 1e-7 * size
    # After Adam's first step a change of sign would be a whole learning rate.
    for ours, theirs in pairs(split, weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def pairs(ours, theirs):
    return list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(array, dtype=float)) for array in arrays))


def held(array):
    """Share of an array that each of its devices holds."""
    return {s.data.nbytes / array.nbytes for s in array.addressable_shards}


def test_arrays_are_split_and_stay_split():
    _, state, backbone = one_step("scp", MESHES["mixed"])
    layers = backbone["params"]["layers"]
    assert held(layers["mlp"]["gate"]["kernel"]) == {1 / 4}
    assert held(layers["attention"]["output"]["kernel"]) == {1 / 4}
    assert held(backbone["params"]["embed"]["embedding"]) == {1 / 2}  # 61 rows
    assert held(layers["input_norm"]["scale"]) == {1.0}
    adapter = state.trainable["compressor"]["layers"]["mlp"]["up"]
    assert held(adapter["a"]) == {1 / 2}  # of its width over fsdp
    assert held(adapter["b"]) == {1 / 4}
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
        if jax.tree_util.keystr(path).endswith("['up']['a']")
    ]
    assert len(moments) == 4 and all(held(m) == {1 / 2} for m in moments)


def test_every_wide_array_has_axes():
    toy = toy_network(tied=False, fused_qkv=True, fused_gate_up=True, qkv_bias=True)
    tree = {"backbone": toy.backbone, **toy.adapters}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = tuple(key.key for key in path)
        axes = logical_axes(names, leaf.ndim)
        assert len(axes) == leaf.ndim
        small = names[-1] in ("scale", "memory", "marks") or names[-2] == "rows"
        assert any(axes) != small, names
