"""The checkpoints of a run: an Orbax manager with one-line errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from clara_jax.checkpoint import WRITE_ERRORS, quiet_orbax, remove_folder
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error


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
        try:
            with quiet_orbax():
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except WRITE_ERRORS as error:
            raise write_error(self.folder, error) from error

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
        arguments = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),  # type: ignore[call-arg]
            extra=ocp.args.JsonSave(extra),  # type: ignore[call-arg]
        )
        try:
            with quiet_orbax():
                self._manager.save(step, args=arguments)
        except WRITE_ERRORS as error:
            logging.getLogger("asyncio").addFilter(_is_no_echo)
            # Half a checkpoint would keep the disk full.
            for half in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                remove_folder(half)
            told = write_error(self.folder / str(step), error)
            raise ClaraError(f"{told}; earlier checkpoints stay") from error

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
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        arguments = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(like),  # type: ignore[call-arg]
            extra=ocp.args.JsonRestore(),
        )
        try:
            with quiet_orbax():
                read: Any = self._manager.restore(step, args=arguments)
        except (OSError, ValueError, KeyError, TypeError) as error:
            folder = self.folder / str(step)
            raise ClaraError(
                f"{folder}: the checkpoint cannot be read ({first_line(error)}); "
                "remove this folder to go on from the one before it"
            ) from error
        return read.arrays, read.extra

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Drop what asyncio says, at exit, of the other writes of a save that failed."""
    return "exception was never retrieved" not in record.getMessage()
