"""Orbax behind two faces: trees in folders, and the checkpoints of a run.

Knows arrays and JSON, and no model.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from clara_jax.errors import ClaraError


class Checkpoints:
    """The newest states of a run, each whole or absent.

    A checkpoint is written beside its final name and renamed when it is complete, so
    that a process killed at any moment leaves the earlier ones. Saving returns when
    the files are in place.

    Attributes:
      folder: holds one subfolder per checkpoint, named by its step.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        """Open `folder`, making it if needed.

        Args:
          folder: of this run alone.
          keep: older checkpoints than the newest so many are removed.
        """
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=True,
            cleanup_tmp_directories=True,
        )
        with _one_line(f"cannot open checkpoints in {self.folder}"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, extra: dict[str, Any]) -> None:
        """Write one checkpoint; does nothing if `step` is saved already.

        Args:
          step: its name.
          arrays: a pytree of arrays.
          extra: JSON values.

        Raises:
          ClaraError: it could not be written (disk full, no permission). Earlier
            checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        what = f"cannot save checkpoint {step} in {self.folder}"
        with _one_line(what, "; earlier checkpoints stay"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),  # type: ignore[call-arg]
                    extra=ocp.args.JsonSave(extra),  # type: ignore[call-arg]
                ),
            )

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """Read one checkpoint.

        Args:
          step: its name.
          template: a pytree of arrays or shapes (with shardings) as saved.

        Returns:
          The arrays and the JSON values.

        Raises:
          ClaraError: it is damaged, or does not fit the template.
        """
        folder = self.folder / str(step)
        advice = f"; remove {folder} to go on from the checkpoint before it"
        with _one_line(f"cannot read checkpoint {step} in {self.folder}", advice):
            read = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(  # type: ignore[call-arg]
                        jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
                    ),
                    extra=ocp.args.JsonRestore(),
                ),
            )
        return read.arrays, read.extra

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


@contextlib.contextmanager
def _one_line(what: str, advice: str = "") -> Iterator[None]:
    """Turn what Orbax and TensorStore raise and log into one line."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClaraError(f"{what}: {_reason(error)}{advice}") from error
    finally:
        log.setLevel(level)


def _reason(error: BaseException) -> str:
    """What the system said, without the layers around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    found = re.findall(r": ([^:]+) \[os_error_code", text)
    return found[-1] if found else text[:300]
