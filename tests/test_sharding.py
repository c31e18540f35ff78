"""The axis table, on eight devices, with proof of what each of them holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from clara_jax.errors import ClaraError
from clara_jax.sharding import (
    RULES,
    ShardingRules,
    make_mesh,
    named_sharding,
    partition_spec,
)


def bytes_per_device(array: jax.Array) -> dict[int, int]:
    held: dict[int, int] = {}
    for shard in array.addressable_shards:
        held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return held


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1)),
        ({"fsdp": 4}, (1, 2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 1, 4, 2)),
        ({"slice": 2, "fsdp": 2, "tensor": 2}, (2, 1, 2, 2)),
    ],
)
def test_mesh_shapes(sizes, shape):
    mesh = make_mesh(**sizes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("slice", "data", "fsdp", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 4


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3},
        {"fsdp": 3},
        {"data": -1, "fsdp": -1},
        {"data": 0},
        {"tensor": -2},
        {"data": 16},
    ],
)
def test_mesh_refuses_sizes_that_do_not_fit(sizes):
    with pytest.raises(ClaraError, match="mesh slice"):
        make_mesh(**sizes)


def test_mesh_of_chosen_devices():
    mesh = make_mesh(devices=jax.devices()[:2])
    assert mesh.devices.shape == (1, 2, 1, 1)


def test_specs_follow_the_table():
    assert partition_spec("batch", "length", None) == P(
        ("slice", "data", "fsdp"), None, None
    )
    assert partition_spec("layers", "width", "mlp") == P(None, "fsdp", "tensor")
    assert partition_spec() == P()


def test_a_mesh_axis_is_used_once():
    with pytest.raises(ClaraError, match="'batch' and 'width'.*mesh axis 'fsdp'"):
        partition_spec("batch", "length", "width")
    with pytest.raises(ClaraError, match="mesh axis 'tensor'"):
        partition_spec("mlp", "vocab")
    twice = ShardingRules(batch=("data", "data"))
    with pytest.raises(ClaraError, match="mesh axis 'data'"):
        partition_spec("batch", rules=twice)


def test_unknown_axes_are_named():
    with pytest.raises(ClaraError, match="no logical axis 'bach'; use one of batch"):
        partition_spec("bach")


def test_every_rule_names_axes_of_the_mesh():
    mesh = make_mesh()
    for logical in ShardingRules.__dataclass_fields__:
        assert set(RULES.mesh_axes(logical)) <= set(mesh.axis_names)


def test_a_batch_is_split_over_all_devices():
    mesh = make_mesh(fsdp=4)
    batch = {
        "ids": np.arange(16 * 6, dtype=np.int32).reshape(16, 6),
        "absent": None,
        "mask": np.ones((16, 2, 3), bool),
    }
    placed = jax.device_put(batch, named_sharding(mesh, "batch"))
    assert bytes_per_device(placed["ids"]) == dict.fromkeys(range(8), 2 * 6 * 4)
    assert bytes_per_device(placed["mask"]) == dict.fromkeys(range(8), 2 * 2 * 3)
    assert placed["absent"] is None
    np.testing.assert_array_equal(placed["ids"], batch["ids"])


def test_tensor_devices_repeat_the_batch():
    rows = named_sharding(make_mesh(tensor=4), "batch")
    placed = jax.device_put(jnp.zeros((4, 5)), rows)
    assert bytes_per_device(placed) == dict.fromkeys(range(8), 2 * 5 * 4)


def test_weights_are_split_and_results_agree():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (8, 4, 16))
    up = jax.random.normal(keys[1], (16, 32))
    down = jax.random.normal(keys[2], (32, 16))

    def mlp(x, up, down):
        return jax.nn.silu(x @ up) @ down

    placed_up = jax.device_put(up, named_sharding(mesh, "width", "mlp"))
    placed_down = jax.device_put(down, named_sharding(mesh, "mlp", "width"))
    assert bytes_per_device(placed_up) == dict.fromkeys(range(8), up.nbytes // 4)
    y = jax.jit(mlp)(
        jax.device_put(x, named_sharding(mesh, "batch")), placed_up, placed_down
    )
    np.testing.assert_allclose(y, mlp(x, up, down), rtol=1e-5, atol=1e-5)


def test_data_parallel_gradients_are_those_of_one_device():
    mesh = make_mesh()
    weights = jax.device_put(jnp.arange(4.0), named_sharding(mesh))
    rows = jnp.arange(32.0).reshape(8, 4) / 32

    def loss(weights, rows):
        return jnp.sum((rows @ weights) ** 2) / rows.shape[0]

    whole = jax.grad(loss)(jnp.arange(4.0), rows)
    split = jax.jit(jax.grad(loss))(
        weights, jax.device_put(rows, named_sharding(mesh, "batch"))
    )
    np.testing.assert_allclose(split, whole, rtol=1e-6)
    assert split.sharding.is_fully_replicated
