"""Which shards a process writes, by its arguments and by its cluster."""

import pytest

from clara_jax.distributed.sharing import Part, own_part, parse_part
from clara_jax.errors import ClaraError


def test_parts_are_written_from_one_and_counted_from_zero():
    assert parse_part("1/1") == Part(0, 1)
    assert parse_part("4/4") == Part(3, 4)
    assert str(parse_part("2/4")) == "part 2 of 4"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/2", "1/", "-1/2", "1/2/3", ""])
def test_other_parts_are_refused(text):
    with pytest.raises(ClaraError, match=f"--part is '{text}'"):
        parse_part(text)


def test_a_cluster_says_which_part():
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
    assert own_part(slurm) == Part(2, 4)
    both = {**slurm, "JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "3"}
    assert own_part(both) == Part(0, 3)
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert own_part(mpi) == Part(1, 2)
    assert own_part({"SLURM_PROCID": "2"}) == Part(0, 1)
    for wrong in ("x", "4", "-1"):
        with pytest.raises(ClaraError, match="SLURM_PROCID is"):
            own_part({**slurm, "SLURM_PROCID": wrong})
