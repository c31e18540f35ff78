"""Trees of arrays on disk (Orbax), written whole or not at all. Knows no model."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error
from clara_jax.shapes import Params

WRITE_ERRORS = (OSError, ValueError, RuntimeError)
"""What Orbax and the system raise when a write fails; see `write_error`."""


def save_tree(path: str | os.PathLike, tree: Params) -> None:
    """Write a tree of arrays to a new folder.

    Everything is written to a sibling first and renamed at the end, so `path` either
    holds the whole tree or stays as it was.

    Args:
      path: the folder; an older tree there is replaced.
      tree: nested dicts of numpy or JAX arrays.

    Raises:
      ClaraError: the disk is full, or the folder cannot be written.
    """
    path = Path(path).absolute()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        write_tree(temporary / "tree", tree)
        replace_folder(temporary / "tree", path)
    except WRITE_ERRORS as error:
        if temporary is not None:
            remove_folder(temporary)
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_tree(path: Path, tree: Params) -> None:
    """Write a tree to a new folder, and let errors pass: for use by other writers.

    About one array at a time is copied on its way to the disk, not the whole tree.
    """
    largest = max((leaf.nbytes for leaf in jax.tree.leaves(tree)), default=0)
    # Written by one process, whatever the others do meanwhile.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here,
        active_processes={here},
        barrier_sync_key_prefix=f"process_{here}",
    )
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=1 + largest // 10**9, multiprocessing_options=alone
    )
    quiet_orbax()
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(jax.tree.map(_lent, tree)))


def load_tree(
    path: str | os.PathLike,
    like: Params | None = None,
    placement: Callable[[Params], Params] | None = None,
) -> Params:
    """Read a tree that `save_tree` wrote.

    Args:
      path: the folder.
      like: a tree of arrays or ``jax.ShapeDtypeStruct`` to check names and shapes
        against. Its types are taken over, and its shardings where it has any: such
        leaves are read straight into their devices.
      placement: a tree of shapes to the same tree of shardings: all arrays are then
        read straight into their devices.

    Returns:
      The tree: JAX arrays where there are shardings, numpy arrays elsewhere.

    Raises:
      ClaraError: the folder is missing or damaged, or does not match `like`.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise ClaraError(f"{path}: there is no saved tree; check the path")
    quiet_orbax()
    try:
        handler = ocp.PyTreeCheckpointHandler()
        with ocp.Checkpointer(handler) as checkpointer:
            stored = _shapes(checkpointer.metadata(path).item_metadata)
            template = stored if like is None else _matched(path, stored, like)
            if placement is not None:
                places = placement(template)
                template = jax.tree.map(_placed, template, places)
            return checkpointer.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    restore_args=jax.tree.map(_restore_args, template)
                ),
            )
    except ClaraError:
        raise
    except Exception as error:
        raise ClaraError(
            f"{path}: the saved tree is damaged or incomplete ({first_line(error)}); "
            "make it again"
        ) from error


def quiet_orbax() -> None:
    """Keep off stderr what Orbax reports of errors that it raises as well.

    On an error its threads log it too, and abandon the rest of a read or write, of
    which asyncio and Python complain later, even at exit. What others report is left
    alone. Call this before Orbax is used; once is enough.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _WithoutAbandoned):
        sys.unraisablehook = _WithoutAbandoned(sys.unraisablehook)


_ORBAX = re.compile(r"[\\/]orbax[\\/]checkpoint[\\/]|orbax-checkpoint-tmp")
"""Its source files, and the folders that it writes to."""


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return not any(map(_ORBAX.search, (record.pathname, record.getMessage(), *files)))


class _WithoutAbandoned:
    """Passes everything to `hook` but what an abandoned read or write leaves.

    That is a return to a closed event loop, or one of Orbax's coroutines that was
    never begun (an error here where warnings are errors).
    """

    def __init__(self, hook: Callable[[Any], object]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        code = getattr(unraisable.object, "cr_code", None)
        late = isinstance(error, RuntimeError) and "loop is closed" in str(error)
        idle = isinstance(error, RuntimeWarning) and "never awaited" in str(error)
        if not late and not (idle and code and _ORBAX.search(code.co_filename)):
            self._hook(unraisable)


def replace_folder(source: Path, target: Path) -> None:
    """Rename folder `source` to `target`; what was there is removed afterwards."""
    if not target.exists():
        os.rename(source, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    os.rename(target, old / "old")
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path, rounds: int = 10) -> None:
    """Remove the temporary folder of a write, which may have failed.

    Writes that Orbax abandons on an error go on for a moment and make their folders
    again, so the folder has to stay away for a second.
    """
    shutil.rmtree(path, ignore_errors=True)
    for _ in range(rounds):
        time.sleep(0.1)
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


class _Lent(np.ndarray):
    """An array that nobody changes during the save: Orbax need not copy it first."""

    def __deepcopy__(self, memo: dict) -> np.ndarray:
        return self


def _lent(leaf):
    return leaf.view(_Lent) if type(leaf) is np.ndarray else leaf


def _shapes(metadata: Any) -> Params:
    if metadata is None:
        raise ValueError("its metadata are missing")

    def shape(leaf):
        if leaf.shape is None or leaf.dtype is None:
            raise ValueError("an array has no shape")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(shape, metadata.tree)


def _matched(path: Path, stored: Params, like: Params) -> Params:
    have = {jax.tree_util.keystr(k): v for k, v in _leaves(stored)}
    want = {jax.tree_util.keystr(k): v for k, v in _leaves(like)}
    for name in want:
        if name not in have:
            raise ClaraError(f"{path}: array {name} is missing")
        if tuple(have[name].shape) != tuple(want[name].shape):
            raise ClaraError(
                f"{path}: array {name} has shape {tuple(have[name].shape)}, "
                f"but {tuple(want[name].shape)} is needed"
            )
    for name in have:
        if name not in want:
            raise ClaraError(f"{path}: array {name} is not expected here")
    return like


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: Params) -> list:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _restore_args(leaf) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
        sharding=sharding, dtype=leaf.dtype, global_shape=tuple(leaf.shape)
    )
