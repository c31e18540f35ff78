"""The checkpoints of a run: an Orbax manager with one-line errors and checksums.

A checksum does not depend on where an array lies: it is ``sum(bits[i] * (2 i + 1)) mod
2**32`` over an array's numbers as unsigned integers. Integers add up to the same in any
order, so every mesh finds the same; and as no odd number divides a power of two, no
single changed number goes unnoticed.
"""

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from clara_jax.checkpoint import BY_NAME, WRITE_ERRORS, remove_folder
from clara_jax.clara import Network
from clara_jax.clara.fingerprint import backbone_shape, named_leaves
from clara_jax.distributed import first, gather, report, to_host
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error
from clara_jax.shapes import Array, Shaped


def checksums(tree: Any) -> dict[str, int]:
    """Return the checksum of every array of a tree, computed where they lie.

    Names are such as ``compressor/layers/mlp/up/a``.
    """
    leaves = named_leaves(tree)
    sums = to_host(_sums([leaf for _, leaf in leaves]))
    return {name: int(s) for (name, _), s in zip(leaves, sums, strict=True)}


@jax.jit
def _sums(leaves: list[Any]) -> Shaped[Array, " n"]:
    return jnp.stack([jnp.zeros((), jnp.uint32), *map(_sum, leaves)])[1:]


def _sum(x: Shaped[Array, "..."]) -> Shaped[Array, ""]:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        bits = x.astype(jnp.uint32)
    else:
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        step = jnp.uint32(stride % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
        stride *= x.shape[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def fingerprint(network: Network) -> dict[str, Any]:
    """Return the backbone's shape and the checksums of all that is frozen, as JSON."""
    frozen = {"backbone": network.backbone, **network.adapters}
    return {"shape": backbone_shape(network), "weights": checksums(frozen)}


def refuse_other(where: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a `ClaraError` that names what differs between two fingerprints."""
    shape = json.loads(json.dumps(now["shape"]))  # tuples become lists
    for name, here in shape.items():
        before = saved["shape"].get(name)
        if before != here:
            raise ClaraError(
                f"{where}: was trained on a backbone whose {name} is {before}, but "
                f"this one has {here}; give the backbone that it was trained on"
            )
    before, here = saved["weights"], now["weights"]
    changed = [n for n in {**before, **here} if before.get(n) != here.get(n)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ClaraError(
            f"{where}: was trained on other frozen weights of the same shape: "
            f"{changed[0]}{more} of {len(here)} arrays differ; give the weights that "
            "it was trained on, or another --config.workdir"
        )


class Damaged(ClaraError):
    """A checkpoint that cannot be read back as it was written."""


class Checkpoints:
    """The newest states of a run, each whole or absent.

    A checkpoint is written beside its final name, in the background, and renamed when
    it is complete, so that a process killed at any moment leaves the earlier ones. All
    processes write their own parts, to a folder that all of them see.

    Args:
      folder: of this run alone; holds one subfolder per checkpoint, named by its step.
      keep: older checkpoints than the newest so many are removed.
      fingerprint: of what the run does not change, kept in every checkpoint; one with
        another is refused. None neither writes nor compares any.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        fingerprint: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder).resolve()
        self._fingerprint = fingerprint
        self._writing: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=True,
            cleanup_tmp_directories=True,
            atomicity_options=BY_NAME,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except WRITE_ERRORS as error:
            raise write_error(self.folder, error) from error

    def save(self, step: int, arrays: Any, extra: dict[str, Any]) -> None:
        """Begin to write one checkpoint; does nothing if `step` is saved already.

        The pytree of arrays may change once this returns; `extra` holds JSON values. A
        write that fails is reported by the next call, or by `wait`; earlier checkpoints
        stay.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        note = {
            "extra": extra,
            "checksums": checksums(arrays),
            "shapes": _shapes(arrays),
            "fingerprint": self._fingerprint,
        }
        text = json.dumps(note)
        if jax.default_backend() == "cpu":
            # Orbax would go on reading memory that the next step writes to.
            arrays = jax.tree.map(lambda x: x.copy(), arrays)
        arguments = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays),  # type: ignore[call-arg]
            extra=ocp.args.JsonSave({"note": text, "digest": _digest(text)}),  # type: ignore[call-arg]
        )
        self._writing = step
        self._guarded(lambda: self._manager.save(step, args=arguments))

    def wait(self) -> None:
        """Wait until what was begun is in place; for errors see `save`."""
        if self._writing is not None:
            self._guarded(self._manager.wait_until_finished)
            self._writing = None

    def _guarded(self, write: Callable[[], Any]) -> None:
        step = self._writing
        try:
            write()
            self._manager.check_for_errors()
        except WRITE_ERRORS as error:
            self._writing = None
            # Half a checkpoint would keep the disk full.
            for half in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                remove_folder(half)
            told = write_error(self.folder / str(step), error)
            raise ClaraError(f"{told}; earlier checkpoints stay") from error

    def restore_newest(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Return step, arrays and JSON values of the newest whole checkpoint, if any.

        Damaged ones are reported and set aside, under names of their own. For the rest
        see `restore`.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, *self.restore(step, template)
            except Damaged as error:
                report(f"{error}; it is set aside, and the one before it is used")
                first(functools.partial(self._set_aside, step))
                self._manager.reload()
        return None

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint's arrays, into the places of the template, and JSON values.

        The template is a pytree of arrays or shapes (with shardings) as saved; these
        may lie on another mesh, and on other processes, than those that saved it.

        Raises:
          Damaged: it is incomplete, or its numbers are not those that were saved.
          ClaraError: it belongs to another model; names the difference.
        """
        folder = self.folder / str(step)
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        stored = self._read(step, extra=ocp.args.JsonRestore()).extra
        text = stored.get("note") if isinstance(stored, dict) else None
        if not isinstance(text, str) or stored.get("digest") != _digest(text):
            raise Damaged(f"{folder}: the checkpoint's note is damaged")
        note = json.loads(text)
        if self._fingerprint is not None and note["fingerprint"] is not None:
            refuse_other(str(folder), note["fingerprint"], self._fingerprint)
        have, want = note["shapes"], _shapes(like)
        for name in sorted(have.keys() | want.keys()):
            if have.get(name) != want.get(name):
                raise ClaraError(
                    f"{folder}: array {name} has shape {have.get(name, 'none')}, but "
                    f"this run's has {want.get(name, 'none')}; give the settings that "
                    "it was trained with, or another --config.workdir"
                )
        read = ocp.args.StandardRestore(like)  # type: ignore[call-arg]
        arrays = self._read(step, arrays=read).arrays
        found = checksums(arrays)
        changed = [n for n in found if found[n] != note["checksums"].get(n)]
        if changed:
            raise Damaged(
                f"{folder}: the checkpoint is damaged: {changed[0]} is not what was "
                "saved"
            )
        return arrays, note["extra"]

    def _read(self, step: int, **items: Any) -> Any:
        """Read items of a checkpoint; all processes succeed, or all fail."""
        read, failure = None, ""
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises whatever its libraries do
            failure = first_line(error)
        if gather(np.array(bool(failure))).any():
            reason = failure or "another process cannot read it"
            raise Damaged(
                f"{self.folder / str(step)}: the checkpoint cannot be read ({reason})"
            )
        return read

    def _set_aside(self, step: int) -> None:
        aside = self.folder / f"damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)

    def close(self) -> None:
        """Release the folder; what was begun is finished first."""
        try:
            self.wait()
        finally:
            # After a failed write it raises what `wait` has raised, or another part.
            with contextlib.suppress(*WRITE_ERRORS):
                self._manager.close()


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in named_leaves(tree)}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
