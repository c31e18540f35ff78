"""Who a process is among others, by its environment, and what one alone does."""

import queue

import jax
import numpy as np
import pytest

from clara_jax.distributed import EXPLICIT, first, from_host, gather, start, to_host
from clara_jax.distributed.processes import _settings
from clara_jax.errors import ClaraError
from clara_jax.sharding import make_mesh, named_sharding
from clara_jax.train import __main__ as command

ADDRESS = "10.0.0.1:1234"
GIVEN = {
    "coordinator_address": ADDRESS,
    "num_processes": 4,
    "process_id": 2,
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (dict(zip(EXPLICIT, (ADDRESS, "4", "2"), strict=True)), GIVEN),
        # The address by hand, the numbers by the cluster.
        (
            {
                EXPLICIT[0]: ADDRESS,
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "2",
            },
            GIVEN,
        ),
        ({EXPLICIT[0]: ADDRESS, "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, GIVEN),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, {}),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # a shell of salloc
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_environment_says_who_a_process_is(environment, expected):
    assert _settings({"JAX_PLATFORMS": "cpu", **environment}) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((ADDRESS, "4", None), "JAX_PROCESS_ID is not set"),
        ((None, "4", "1"), "JAX_COORDINATOR_ADDRESS is not set"),
        (("host", "4", "1"), "must be HOST:PORT"),
        ((ADDRESS, "4", "4"), "process 4 of 4 cannot be"),
        ((ADDRESS, "four", "1"), "process 1 of four cannot be"),
    ],
)
def test_contradictions_are_one_line(values, message):
    environment = {k: v for k, v in zip(EXPLICIT, values, strict=True) if v}
    with pytest.raises(ClaraError, match=message) as caught:
        start(environment)
    assert "\n" not in str(caught.value)


def test_open_mpi_without_an_address_is_refused():
    with pytest.raises(ClaraError, match="set JAX_COORDINATOR_ADDRESS"):
        start({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})


def test_a_process_alone_needs_nobody():
    start({"JAX_PLATFORMS": "cpu"})
    assert not jax.distributed.is_initialized()
    assert first(lambda: {"a": [1]}) == {"a": [1]}
    with pytest.raises(ClaraError, match="mine"):
        first(lambda: (_ for _ in ()).throw(ClaraError("mine")))
    np.testing.assert_array_equal(gather(np.arange(3)), [[0, 1, 2]])


def test_arrays_come_and_go_whole():
    x = np.arange(16.0).reshape(8, 2)
    placed = from_host(x, named_sharding(make_mesh(), "batch", None))
    assert {s.data.shape for s in placed.addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(to_host({"a": placed})["a"], x)


@pytest.mark.parametrize("several", [False, True])
def test_after_an_error_of_the_program_no_process_waits_for_ever(monkeypatch, several):
    def broken(*_):
        raise ZeroDivisionError("a mistake of ours")

    ended = queue.Queue()
    monkeypatch.setattr(command, "read_experiment", broken)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
    monkeypatch.setattr("clara_jax.distributed.processes._ALONE", 0.01)
    monkeypatch.setattr("os._exit", ended.put)
    with pytest.raises(ZeroDivisionError):
        command.main(["--config=a.py"])
    if several:
        assert ended.get(timeout=60) == 1
    assert ended.empty()
