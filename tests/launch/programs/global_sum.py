"""Meets the other processes and adds up the numbers of all devices."""

import os

import jax
from jax.sharding import AxisType, PartitionSpec

jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"],
    int(os.environ["JAX_NUM_PROCESSES"]),
    int(os.environ["JAX_PROCESS_ID"]),
)
count = jax.device_count()
mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))


def add() -> jax.Array:
    return jax.lax.psum(jax.lax.axis_index("all") + 1, "all")


total = jax.shard_map(add, mesh=mesh, in_specs=(), out_specs=PartitionSpec())
print(f"{jax.local_device_count()} of {count} devices, sum {int(jax.jit(total)())}")
