"""Values that processes exchange, and arrays that span them."""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from clara_jax.errors import ClaraError
from clara_jax.files import first_line


def is_first() -> bool:
    """Return whether this is the process that writes files and talks to the user."""
    return jax.process_index() == 0


def report(message: str) -> None:
    """Print a remark for the user on standard error, from the first process only."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


def first(compute: Callable[[], Any]) -> Any:
    """Return on every process what `compute`, called on process 0, returns as JSON.

    Raises:
      ClaraError: `compute` raised it; every process raises the same.
    """
    if jax.process_count() == 1:
        return compute()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": compute()}
        except (ClaraError, OSError) as error:
            answer = {"error": first_line(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    room = np.zeros(size, np.uint8)
    room[: min(size, len(text))] = text[:size]
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(room)))
    if "error" in answer:
        raise ClaraError(answer["error"])
    return answer["value"]


def gather(x: np.ndarray) -> np.ndarray:
    """Stack the arrays of all processes, of one shape: ``[processes, ...]``."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(x)))


def to_host(tree: Any) -> Any:
    """Return a tree of arrays as whole numpy arrays, on every process."""

    def fetch(leaf: Any) -> np.ndarray:
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def from_host(x: Any, sharding: NamedSharding) -> jax.Array:
    """Place an array that every process holds whole; each takes its own parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
