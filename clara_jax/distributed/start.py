"""The start and the end of a process among others."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import jax

from clara_jax.distributed.watch import TRY_AGAIN, Watch
from clara_jax.errors import ClaraError
from clara_jax.files import first_line

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Environment variables that say it outright: ``HOST:PORT`` of process 0, how many
processes there are, and which of them this is, counted from 0."""

_RANKS = {
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
"""Where a cluster keeps the number of processes and the number of this one."""

_watch: Watch | None = None


def start(environment: Mapping[str, str] = os.environ, timeout: float = 300) -> None:
    """Join the other processes, if this one is one of several. Call it first.

    What counts is, in this order: the variables of `EXPLICIT` (the last two may be
    the cluster's own), a TPU pod or slices (also on GKE), SLURM, Open MPI. Elsewhere
    the process is alone and nothing happens.

    Args:
      environment: variables to look at.
      timeout: seconds to wait for the other processes.

    Raises:
      ClaraError: the variables contradict each other, or not all processes came.
    """
    global _watch
    if jax.distributed.is_initialized():
        return
    settings = _settings(environment)
    if settings is None:
        return
    try:
        jax.distributed.initialize(**settings, initialization_timeout=int(timeout))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        where = settings.get("coordinator_address", "the cluster's coordinator")
        raise ClaraError(
            f"the processes did not come together at {where} within {timeout:.0f} s "
            f"({first_line(error)}); start the same command on every host, each with "
            "its own process number"
        ) from error
    if jax.process_count() > 1:
        _watch = Watch(jax.process_index(), jax.process_count())


def _settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of ``jax.distributed.initialize``, or None for a single process."""
    address, *numbers = (environment.get(name) for name in EXPLICIT)
    cluster, (count, index) = _ranks(environment)
    if address or any(numbers):
        count = numbers[0] or count
        index = numbers[1] or index
        for name, value in zip(EXPLICIT, (address, count, index), strict=True):
            if not value:
                raise ClaraError(f"environment: {name} is not set, but others are")
        return _explicit(str(address), str(count), str(index))
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if "," in hosts or slices not in ("", "1") or _on_tpu_vm(environment):
        return {}
    if cluster and count not in (None, "1"):
        if cluster == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in environment:
            raise ClaraError(
                "environment: this Open MPI does not say where its first process is; "
                "set JAX_COORDINATOR_ADDRESS=HOST:PORT for all of them"
            )
        return {}
    return None


def _ranks(
    environment: Mapping[str, str],
) -> tuple[str, tuple[str | None, str | None]]:
    for cluster, (count, index) in _RANKS.items():
        if count in environment and index in environment:
            return cluster, (environment[count], environment[index])
    return "", (None, None)


def _explicit(address: str, count: str, index: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClaraError(
            f"environment: JAX_COORDINATOR_ADDRESS is '{address}', but must be "
            "HOST:PORT of process 0"
        )
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise ClaraError(
            f"environment: process {index} of {count} cannot be; processes are "
            "numbered from 0 to JAX_NUM_PROCESSES - 1"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
    }


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    """A machine of Google's with TPU chips, which knows about its pod itself."""
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    if not chips or "tpu" not in platforms or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    with contextlib.suppress(OSError):
        socket.create_connection(("metadata.google.internal", 80), 2).close()
        return True
    return False


def leave(status: int, reason: str = "") -> int:
    """End this process's part. Call it last, with what the command returns.

    After an error the process ends here: whoever waits for the others may wait for
    ever, and they are told why they need not.

    Args:
      status: exit status of the command.
      reason: one line on an error that only this process may have met; empty if all
        processes end in the same way.

    Returns:
      `status`.
    """
    if _watch is not None:
        _watch.leave(reason)
        if reason:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def cause(error: Exception) -> tuple[str, int]:
    """Find out why a computation failed: most likely, a process is gone.

    Waits for as long as it takes to find out which.

    Returns:
      One line, and the exit status: `TRY_AGAIN` for the loss of another process.
    """
    lost = _watch.lost(wait=True) if _watch is not None else ""
    return (lost, TRY_AGAIN) if lost else (first_line(error), 1)
