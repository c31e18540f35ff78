"""Trees of arrays on disk (Orbax). Knows no model."""

import logging
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.shapes import Params
from clara_jax.sharding import placed

WRITE_ERRORS = (OSError, ValueError, RuntimeError)
"""What Orbax and the system raise when a write fails; see `write_error`."""

BY_NAME = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.ATOMIC_RENAME)
"""A folder with its final name is whole, on every disk.

Left to choose, Orbax wants a file ``commit_success.txt`` in what it takes for a bucket,
and removes folders without one: those that its versions before 0.12.3 renamed.
"""


# Orbax also logs the errors that it raises, with tracebacks; asyncio and Python print
# more of the reads and writes that are given up then. OCDBT is the files' format.
def _is_of_others(record: logging.LogRecord) -> bool:
    return not re.search("orbax|OCDBT", f"{record.pathname} {record.getMessage()}")


def _report(unraisable: Any, report: Callable[[Any], Any] = sys.unraisablehook) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


logging.getLogger("absl").addFilter(_is_of_others)
logging.getLogger("asyncio").addFilter(_is_of_others)
sys.unraisablehook = _report
warnings.filterwarnings("ignore", r"coroutine 'Store\.", RuntimeWarning)


def write_tree(path: Path, tree: Params) -> None:
    """Write a tree of arrays to a new folder.

    About one array at a time is copied on its way to the disk, not the whole tree.

    Args:
      path: the folder; absolute.
      tree: nested dicts of numpy or JAX arrays.

    Raises:
      OSError, ValueError, RuntimeError: see `WRITE_ERRORS`. Half of it may be left
        beside `path`.
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
    with ocp.Checkpointer(
        handler, multiprocessing_options=alone, atomicity_options=BY_NAME
    ) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(jax.tree.map(_lent, tree)))


def load_tree(
    path: str | os.PathLike,
    like: Params | None = None,
    placement: Callable[[Params], Params] | None = None,
) -> Params:
    """Read a tree that `write_tree` wrote.

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
    try:
        handler = ocp.PyTreeCheckpointHandler()
        with ocp.Checkpointer(handler, atomicity_options=BY_NAME) as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata
            if metadata is None:
                raise ValueError("its metadata are missing")
            stored = jax.tree.map(_abstract, metadata.tree)
            template = stored if like is None else _matched(path, stored, like)
            if placement is not None:
                template = placed(template, placement(template))
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


def replace_folder(source: Path, target: Path) -> None:
    """Rename folder `source` to `target`, and remove what was there."""
    if not target.exists():
        os.rename(source, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    os.rename(target, old / "old")
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove the temporary folder of a write that has failed.

    What Orbax gives up after an error goes on for a moment and makes its folders again,
    so that they are removed for a second.
    """
    for _ in range(11):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.1)


class _Lent(np.ndarray):
    """An array that nobody changes during the save: Orbax need not copy it first."""

    def __deepcopy__(self, memo: dict) -> np.ndarray:
        return self


def _lent(leaf):
    return leaf.view(_Lent) if type(leaf) is np.ndarray else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if leaf.shape is None or leaf.dtype is None:
        raise ValueError("an array has no shape")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _matched(path: Path, stored: Params, like: Params) -> Params:
    have = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(stored)}
    want = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(like)}
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


def _restore_args(leaf) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
        sharding=sharding, dtype=leaf.dtype, global_shape=tuple(leaf.shape)
    )
