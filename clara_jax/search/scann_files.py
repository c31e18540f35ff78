"""What lies in the folder of a ScaNN index, and how ScaNN is spoken to."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.search.index_files import is_there, read_note
from clara_jax.search.keys import Keys
from clara_jax.search.store import Store

KIND = "scann"
ROWS = "rows.npy"

_CHATTER = re.compile(rb"^([IW]\d{4} |WARNING: All log messages before absl)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an index is made.

    Attributes:
      method: ``brute_force``: all keys compared; ``hashing``: all hashed keys;
        ``tree``: hashed keys of the nearest leaves.
      dims: principal directions of a key.
      leaves: of the tree. leaves_to_search: of them, for a question.
      soar: put each key into a second leaf, chosen to err otherwise than the first.
      candidates: that are rescored exactly, for a question.
      sample: documents that keys are learnt from. seed: of that sample.
    """

    method: str
    dims: int
    leaves: int
    leaves_to_search: int
    soar: bool
    candidates: int
    sample: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Meta:
    """What an index holds.

    Attributes:
      fingerprint, epoch: of the store.
      rows: of the store when it was indexed, deleted ones included.
      documents: in the index.
      trained: documents that there were when the index was last built anew.
      deleted: rows that were deleted by then.
      settings: how it was made. given: those that were asked for, by name.
      held_out: rows that keys were not learnt from, to make questions of.
      folder: that the files lie in. files: size and checksum of each.
      measured: what ``recall.report`` found last; empty: nothing yet.
    """

    fingerprint: str
    epoch: int
    rows: int
    documents: int
    trained: int
    deleted: int
    settings: Settings
    given: Mapping[str, Any]
    held_out: tuple[int, ...]
    folder: str
    files: Mapping[str, Mapping[str, Any]]
    measured: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file["size"] for file in self.files.values())

    def note(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {**dataclasses.asdict(self), "held_out": list(self.held_out)}

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> Meta:
        """Read what `note` gave."""
        settings = Settings(**note["settings"])
        held_out = tuple(note["held_out"])
        return cls(**{**note, "settings": settings, "held_out": held_out})


def has_index(store: Store) -> bool:
    """Whether a store has a ScaNN index, be it out of date."""
    return is_there(store, KIND)


def read_meta(store: Store) -> Meta:
    """Read what a store's ScaNN index holds; see ``index_files.read_note``."""
    return Meta.of(read_note(store, KIND))


def save(folder: Path, keys: Keys, rows: Int[np.ndarray, "n"], searcher: Any) -> None:
    """Write the files of an index, and see whether ScaNN can read them.

    Raises:
      ClaraError: ScaNN cannot write them, most often since the disk is full.
    """
    keys.save(folder)
    np.save(folder / ROWS, rows)
    try:
        with quiet():
            searcher.serialize(str(folder), relative_path=True)
        size = load(folder)[2].size()
    except RuntimeError as error:
        raise failed(folder, "write its files; is the disk full?", error) from error
    if size != len(rows):
        raise ClaraError(f"{folder}: ScaNN wrote {size} of {len(rows)} documents")


def load(folder: Path) -> tuple[Keys, Int[np.ndarray, "n"], Any]:
    """Read the files of an index whose checksums are right.

    Returns:
      The keys, the row of each place in the index, and ScaNN's searcher.
    """
    library = scann()
    with quiet():
        searcher = library.load_searcher(str(folder))
    return Keys.load(folder), np.load(folder / ROWS), searcher


def scann() -> Any:
    """Import ScaNN.

    Raises:
      ClaraError: it is not installed.
    """
    try:
        return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
    except ImportError as error:
        raise ClaraError(
            "this needs the package scann (wheels: Linux x86-64): pip install scann, "
            "or search exactly"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ScaNN's log off the standard error; all other lines are shown afterwards."""
    sys.stderr.flush()
    try:
        shown = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            caught.seek(0)
            for line in caught:
                if not _CHATTER.match(line):
                    os.write(2, line)


def failed(where: Path, doing: str, error: Exception) -> ClaraError:
    """Return the one-line error for what ScaNN did not manage."""
    return ClaraError(f"{where}: ScaNN could not {doing} ({first_line(error)})")
