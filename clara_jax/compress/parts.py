"""Which part of the shards this process writes, when several write one store.

They share a file system and nothing else: no process talks to another, and one that
ends early may be started again alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import jax

from clara_jax.errors import ClaraError

_NUMBERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""Environment variables with the number of a process, from 0, and how many there are;
the first pair that is set counts."""


class Part(NamedTuple):
    """One of so many parts; counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}"


def parse_part(text: str) -> Part:
    """Read a part as it is written: ``I/N``, where I counts from 1.

    Raises:
      ClaraError: it is no such part.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(index) <= int(count)):
        raise ClaraError(
            f"--part is '{text}', but must be I/N, such as 1/4 for the first of four"
        )
    return Part(int(index) - 1, int(count))


def own_part(environment: Mapping[str, str] = os.environ) -> Part:
    """Find this process's part: what a cluster says, or all.

    Args:
      environment: variables to look at; see also ``jax.process_count``, which knows of
        the hosts of a TPU slice.

    Raises:
      ClaraError: the variables make no sense.
    """
    for index, count in _NUMBERS:
        if index in environment and count in environment:
            numbers = environment[index], environment[count]
            if not all(map(str.isdecimal, numbers)) or int(numbers[0]) >= int(
                numbers[1]
            ):
                raise ClaraError(
                    f"environment: {index} is '{numbers[0]}' of {count} "
                    f"'{numbers[1]}'; give the part with --part, such as --part 1/1"
                )
            return Part(int(numbers[0]), int(numbers[1]))
    return Part(jax.process_index(), jax.process_count())
