"""The start and the end of a process; JAX ends all processes when one is gone."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax

from clara_jax.errors import ClaraError
from clara_jax.files import first_line

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Environment variables: ``HOST:PORT`` of process 0, the number of processes, and the
index of this one."""

SLURM = ("SLURM_NTASKS", "SLURM_PROCID")
OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
"""Where a cluster keeps the number of processes and the number of this one."""

_SILENCE = 20
"""Seconds without a sign of life after which a process counts as lost. JAX then aborts
the others (SIGABRT, status 134) with a message that names it."""

_ALONE = 30
"""Seconds to wait for the other processes after an error. More than `_SILENCE`: if the
error comes from the loss of a process, JAX names that process first."""


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if this one is one of several. Call it first.

    What counts is, in this order: the variables of `EXPLICIT` (the last two may be
    the cluster's own), a TPU pod or slices (also on GKE), SLURM, Open MPI. Elsewhere
    the process is alone and nothing happens. JAX aborts the process if the others do
    not come within 5 minutes.

    Raises:
      ClaraError: the variables contradict each other, or process 0 cannot be reached.
    """
    settings = _settings(environment)
    if settings is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**settings, heartbeat_timeout_seconds=_SILENCE)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        where = settings.get("coordinator_address", "the cluster's coordinator")
        raise ClaraError(
            f"the processes cannot come together at {where} ({first_line(error)}); "
            "start the same command on every host, each with its own process number"
        ) from error


def _settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return arguments of ``jax.distributed.initialize``; None for one process."""
    address, count, index = (environment.get(name) for name in EXPLICIT)
    cluster = SLURM if SLURM[1] in environment else OPEN_MPI
    its_count, its_index = (environment.get(name) for name in cluster)
    if address or count or index:
        return _explicit(address, count or its_count, index or its_index)
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if "," in hosts or slices not in ("", "1") or _on_tpu_vm(environment):
        return {}
    if its_index is None or its_count in (None, "1"):
        return None
    if cluster == OPEN_MPI and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise ClaraError(
            "environment: this Open MPI does not say where its first process is; "
            "set JAX_COORDINATOR_ADDRESS=HOST:PORT for all of them"
        )
    return {}


def _explicit(*values: str | None) -> dict[str, Any]:
    for name, value in zip(EXPLICIT, values, strict=True):
        if not value:
            raise ClaraError(f"environment: {name} is not set, but others are")
    address, count, index = map(str, values)
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
    """Whether this is a machine with TPU chips that itself knows about its pod."""
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    if not chips or "tpu" not in platforms or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    with contextlib.suppress(OSError):
        socket.create_connection(("metadata.google.internal", 80), 2).close()
        return True
    return False


def leave(status: int) -> int:
    """Return `status`, and end this process soon. Call it after an error.

    At its exit JAX waits for the other processes. If all meet the error they end
    together; otherwise this one ends alone after 30 s, and JAX aborts the others.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        alone = threading.Timer(_ALONE, os._exit, [status])
        alone.daemon = True
        alone.start()
    return status
