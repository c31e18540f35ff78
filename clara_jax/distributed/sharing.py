"""Work that processes share out without speaking to each other: parts 1 to N."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import jax

from clara_jax.distributed.processes import EXPLICIT, OPEN_MPI, SLURM
from clara_jax.errors import ClaraError


class Part(NamedTuple):
    """One of so many parts; counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}"


def parse_part(text: str) -> Part:
    """Read ``I/N``, where I counts from 1; refuse anything else."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(index) <= int(count)):
        raise ClaraError(
            f"--part is '{text}', but must be I/N, such as 1/4 for the first of four"
        )
    return Part(int(index) - 1, int(count))


def own_part(environment: Mapping[str, str] = os.environ) -> Part:
    """Return this process's part by a cluster's variables or JAX, else all.

    Raises:
      ClaraError: the variables make no sense.
    """
    for names in (EXPLICIT[1:], SLURM, OPEN_MPI):
        if all(name in environment for name in names):
            count, index = (environment[name] for name in names)
            numbers = index.isdecimal() and count.isdecimal()
            if not numbers or int(index) >= int(count):
                raise ClaraError(
                    f"environment: {names[1]} is '{index}' of {names[0]} '{count}'; "
                    "give the part with --part, such as --part 1/1"
                )
            return Part(int(index), int(count))
    return Part(jax.process_index(), jax.process_count())
