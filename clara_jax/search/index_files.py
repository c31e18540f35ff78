"""The folder of a search index, replaced whole or not at all; what ScaNN keeps in it.

index/KIND/meta.json    what is indexed, and checksums; names the folder in use
index/KIND/NUMBER/      the files

A new index is written beside the old one, and is the index once ``meta.json`` is
replaced by rename. What a killed command left is removed by the next one.
"""

import contextlib
import dataclasses
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.files import checksum, first_line, read_json, replace_file, writing
from clara_jax.search.keys import DIMS, SAMPLE, Keys, Short
from clara_jax.search.manifest import Lock, digest_of, json_bytes, remove, wrong_file
from clara_jax.search.store import Store

FORMAT, META, ROWS = 1, "meta.json", "rows.npy"

KINDS = {"scann": ("ScaNN", ""), "bm25": ("BM25", " --bm25")}
"""Indexes: what users call them, and the option that builds them."""

_CHATTER = re.compile(rb"^([IW]\d{4} |WARNING: All log messages before absl)")


def has_index(store: Store, kind: str = "scann") -> bool:
    """Return whether a store has an index of this kind, be it out of date."""
    return (IndexFolder(store, kind).path / META).is_file()


class IndexFolder:
    """The folder, at `path`, of the index of a kind, one of `KINDS`, of a store."""

    def __init__(self, store: Store, kind: str):
        self.store, self.kind = store, kind
        self.path = store.path / "index" / kind
        self._name, self._option = KINDS[kind]

    def read(self) -> dict[str, Any]:
        """Read the note of an index; refuse one that is damaged or of another format.

        Returns:
          ``fingerprint`` and ``epoch`` of the store, its ``rows`` when it was indexed,
          ``folder`` and ``files`` in use, and what the kind of index adds.
        """
        path = self.path / META
        if not path.is_file():
            raise self.useless(self.store.path, f"has no {self._name} index")
        note = read_json(path)
        if note.pop("format", None) != FORMAT:
            what = f"is not of format {FORMAT}, which this version of clara_jax reads"
            raise self.useless(path, what)
        if note.pop("checksum", None) != digest_of(note):
            raise self.useless(path, "is damaged (its checksum is wrong)")
        return note

    def open(self) -> tuple[dict[str, Any], Path]:
        """Return the note of an index that fits the store, and the folder of files."""
        note = self.read()
        self.check(note)
        return note, self.files(note)

    def check(self, note: Mapping[str, Any]) -> None:
        """Refuse an index of other vectors or other row numbers."""
        store, what = self.store, ""
        if note["fingerprint"] != store.fingerprint:
            what = "was built for vectors of another model (fingerprint "
            what += f"{note['fingerprint']}, the store's is {store.fingerprint})"
        elif note["epoch"] != store.epoch or note["rows"] > store.rows:
            what = f"was built for epoch {note['epoch']} of the store, which is in "
            what += f"epoch {store.epoch} since it was compacted: its rows have other "
            what += "numbers"
        if what:
            raise self.useless(self.path, what)

    def files(self, note: Mapping[str, Any]) -> Path:
        """Return the folder of an index's files after comparing all checksums."""
        folder = self.path / note["folder"]
        for name, file in note["files"].items():
            if wrong := wrong_file(folder / name, file["size"], file["checksum"]):
                raise self.useless(folder / name, wrong)
        return folder

    def useless(self, where: Path, what: str) -> ClaraError:
        """Return the error for an index that does not serve, with the remedy."""
        return ClaraError(
            f"{where}: {what}; build it with `python -m clara_jax.compress index "
            f"--store {self.store.path}{self._option}`, or search without it"
        )

    def hold(self) -> Lock:
        """Let nobody else build an index meanwhile."""
        doing = f"building its {self._name} index; wait until it has ended"
        return Lock(self.store.path, f"index-{self.kind}", doing)

    def write(
        self, write: Callable[[Path], None], note: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write a new index beside the old one, put it in its place, return its note.

        Call it inside `hold`. If it cannot be written, the old index stays. `write`
        writes the files into a folder; `note` is what the kind of index has to say.
        """
        current = "0"
        with contextlib.suppress(ClaraError):
            current = self.read()["folder"]
        number = str(int(current) + 1)
        folder = self.path / number
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_all_but(current)
            folder.mkdir()
            try:
                write(folder)
                files = {}
                for path in folder.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                    size, found = checksum(path)
                    files[path.name] = {"size": size, "checksum": found}
                whole = {
                    **note,
                    "fingerprint": self.store.fingerprint,
                    "epoch": self.store.epoch,
                    "rows": self.store.rows,
                    "folder": number,
                    "files": files,
                }
                self.write_note(whole)
                current = number
            finally:
                self._remove_all_but(current)
        return whole

    def write_note(self, note: Mapping[str, Any]) -> None:
        """Put a note in place of the one that is there."""
        values = {**note, "checksum": digest_of(note), "format": FORMAT}
        replace_file(self.path / META, json_bytes(values))

    def _remove_all_but(self, kept: str) -> None:
        remove(x for x in self.path.iterdir() if x.name not in (kept, META))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a ScaNN index is made.

    `method` ``brute_force`` compares all keys; ``hashing`` all hashed keys; ``tree``
    hashed keys of the nearest leaves. With `soar` each key is put into a second leaf,
    chosen to err otherwise than the first.
    """

    method: str
    leaves: int  # of the tree
    leaves_to_search: int  # of them, for a question
    dims: int = DIMS  # principal directions of a key
    soar: bool = True
    candidates: int = 200  # that are rescored exactly, for a question
    sample: int = SAMPLE  # documents that keys are learnt from, at most
    seed: int = 0  # of that sample


def build(where: Path, keys: Short, settings: Settings) -> Any:
    """Build ScaNN's searcher over keys of documents."""
    with scann_at_work(where, "build an index"):
        builder = scann().builder(keys, settings.candidates, "dot_product")
        builder.set_n_training_threads(len(os.sched_getaffinity(0)))
        if settings.method == "tree":
            soar = {"soar_lambda": 1.5, "overretrieve_factor": 2.0}
            more = soar if settings.soar else {}
            builder.tree(settings.leaves, settings.leaves_to_search, **more)
        if settings.method == "brute_force":
            builder.score_brute_force()
        else:
            # Four bits for every number of a key. ScaNN's rule, for every two, finds
            # less where there is no tree, and saves little beside the vectors.
            builder.score_ah(1, anisotropic_quantization_threshold=0.2)
        return builder.build()


def save(folder: Path, keys: Keys, rows: Int[np.ndarray, "n"], searcher: Any) -> None:
    """Write the files of a ScaNN index, and see whether ScaNN can read them."""
    keys.save(folder)
    np.save(folder / ROWS, rows)
    with scann_at_work(folder, "write its files; is the disk full?"):
        searcher.serialize(str(folder), relative_path=True)
        size = load(folder)[2].size()
    if size != len(rows):
        raise ClaraError(f"{folder}: ScaNN wrote {size} of {len(rows)} documents")


def load(folder: Path) -> tuple[Keys, Int[np.ndarray, "n"], Any]:
    """Read the keys, the row of each place in a ScaNN index, and ScaNN's searcher."""
    with quiet():
        searcher = scann().load_searcher(str(folder))
    return Keys.load(folder), np.load(folder / ROWS), searcher


def scann() -> Any:
    """Import ScaNN, or say how to install it."""
    try:
        return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
    except ImportError as error:
        raise ClaraError(
            "this needs the package scann (wheels: Linux x86-64): pip install scann, "
            "or search exactly"
        ) from error


@contextlib.contextmanager
def scann_at_work(where: Path, doing: str) -> Iterator[None]:
    """Let ScaNN do something, and say so where it does not manage."""
    try:
        with quiet():
            yield
    except RuntimeError as error:
        reason = first_line(error)
        raise ClaraError(f"{where}: ScaNN could not {doing} ({reason})") from error


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
