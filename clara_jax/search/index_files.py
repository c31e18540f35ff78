"""The folder of a search index, replaced whole or not at all; what ScaNN keeps in it.

STORE/index/meta.json    what is indexed, and checksums; names the folder in use
STORE/index/NUMBER/      the files

A new index is written beside the old one, and is the index once ``meta.json`` is
replaced. What a killed command left is removed by the next one. That of a store in an
object store is copied into the user's cache before it is loaded.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.files import (
    cache_folder,
    checksum,
    digest_of,
    json_bytes,
    lock_file,
    writing,
)
from clara_jax.native import quiet, scann_at_work
from clara_jax.places import Folder, is_remote
from clara_jax.search.keys import DIMS, SAMPLE, Keys, Short
from clara_jax.search.store import Store

FORMAT, META, IDS, KEYS = 3, "meta.json", "ids.npy", "keys.npz"


def has_index(store: Store) -> bool:
    """Return whether a store has a ScaNN index, be it out of date."""
    return IndexFolder(store).folder.read(META) is not None


class IndexFolder:
    """The folder of the ScaNN index of a store."""

    def __init__(self, store: Store):
        self.store = store
        self.folder = Folder(f"{store.place}/index")

    def read(self) -> dict[str, Any]:
        """Read the note of an index; refuse one that is damaged or of another format.

        Returns:
          ``fingerprint`` of the store; ``documents``, how many are indexed;
          ``settings``; ``held_out``, ids of rows that keys were not learnt from;
          ``folder`` and ``files`` in use, with sizes and checksums.
        """
        data = self.folder.read(META)
        if data is None:
            raise self.useless(self.store.place, "has no ScaNN index")
        where = f"{self.folder}/{META}"
        try:
            note = json.loads(data)
            found, sum = note.pop("format"), note.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise self.useless(where, "is damaged") from None
        if found != FORMAT:
            what = f"is not of format {FORMAT}, which this version of clara_jax reads"
            raise self.useless(where, what)
        if sum != digest_of(note):
            raise self.useless(where, "is damaged (its checksum is wrong)")
        return note

    def open(self) -> tuple[dict[str, Any], Path]:
        """Return the note of an index that fits the store, and the folder of files."""
        note = self.read()
        if note["fingerprint"] != self.store.fingerprint:
            what = "was built for vectors of another model (fingerprint "
            what += f"{note['fingerprint']}, the store's is {self.store.fingerprint})"
            raise self.useless(str(self.folder), what)
        return note, self._files(note)

    def _files(self, note: Mapping[str, Any]) -> Path:
        """Return the folder of an index's files, compared with their checksums."""
        if not is_remote(self.store.place):
            path = Path(self.store.place, "index", note["folder"])
            self._compare(path, note)
            return path
        path = cache_folder() / "indexes" / digest_of(note)
        with contextlib.suppress(ClaraError):
            self._compare(path, note)
            return path
        for name in note["files"]:
            self.folder.download(f"{note['folder']}/{name}", path / name)
        self._compare(path, note)
        return path

    def _compare(self, path: Path, note: Mapping[str, Any]) -> None:
        for name, file in note["files"].items():
            if not (path / name).is_file():
                raise self.useless(str(path / name), "is missing")
            if list(checksum(path / name)) != file:
                raise self.useless(
                    str(path / name), "is damaged (its checksum is wrong)"
                )

    def useless(self, where: str, what: str) -> ClaraError:
        """Return the error for an index that does not serve, with the remedy."""
        return ClaraError(
            f"{where}: {what}; build it with `python -m clara_jax.compress index "
            f"--store {self.store.place}`, or search without it"
        )

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let nobody else on this file system build an index meanwhile."""
        if is_remote(self.store.place):
            yield
            return
        busy = f"{self.store.place}: another process is building its index; wait until "
        path = Path(self.store.place, "index", ".lock")
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        file = lock_file(path, f"{busy}it has ended")
        with file or contextlib.nullcontext():
            yield

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
        self._remove_all_but(current)
        try:
            with self._place(number) as path:
                write(path)
                files = {p.name: list(checksum(p)) for p in sorted(path.iterdir())}
            whole = {
                **note,
                "fingerprint": self.store.fingerprint,
                "folder": number,
                "files": files,
            }
            values = {**whole, "checksum": digest_of(whole), "format": FORMAT}
            self.folder.write(META, json_bytes(values))
            current = number
        finally:
            self._remove_all_but(current)
        return whole

    @contextlib.contextmanager
    def _place(self, number: str) -> Iterator[Path]:
        """Give a folder to write files into, which get to the index's own."""
        if not is_remote(self.store.place):
            path = Path(self.store.place, "index", number)
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)  # left empty by a kill
                yield path
                for file in path.iterdir():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            for file in Path(folder).iterdir():
                self.folder.upload(file, f"{number}/{file.name}")

    def _remove_all_but(self, kept: str) -> None:
        for name in {name.partition("/")[0] for name in self.folder.names()}:
            if name.isdecimal() and name != kept:
                self.folder.child(name).remove()
            elif name.endswith(".tmp"):  # a note that a killed command did not end
                self.folder.remove(name)


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


def build(where: str, keys: Short, settings: Settings) -> Any:
    """Build ScaNN's searcher over keys of documents."""
    with scann_at_work(where, "build an index"):
        builder = scann().builder(keys, settings.candidates, "dot_product")
        builder.set_n_training_threads(len(os.sched_getaffinity(0)))
        if settings.method == "tree":
            soar = {"soar_lambda": 1.5, "overretrieve_factor": 2.0}
            more = soar if settings.soar else {}
            builder.tree(settings.leaves, settings.leaves_to_search, **more)
        # Hashing needs as many keys as a code has values.
        if settings.method == "brute_force" or len(keys) < 16:
            builder.score_brute_force()
        else:
            # Four bits for every number of a key. ScaNN's rule, for every two, finds
            # less where there is no tree, and saves little beside the vectors.
            builder.score_ah(1, anisotropic_quantization_threshold=0.2)
        return builder.build()


def save(folder: Path, keys: Keys, ids: Int[np.ndarray, "n"], searcher: Any) -> None:
    """Write the files of a ScaNN index, and see whether ScaNN can read them."""
    keys.save(folder / KEYS)
    np.save(folder / IDS, ids)
    with scann_at_work(folder, "write its files; is the disk full?"):
        searcher.serialize(str(folder), relative_path=True)
        size = load(folder)[2].size()
    if size != len(ids):
        raise ClaraError(f"{folder}: ScaNN wrote {size} of {len(ids)} documents")


def load(folder: Path) -> tuple[Keys, Int[np.ndarray, "n"], Any]:
    """Read the keys, the id of each place in a ScaNN index, and ScaNN's searcher."""
    with quiet():
        searcher = scann().load_searcher(str(folder))
    return Keys.load(folder / KEYS), np.load(folder / IDS), searcher


def scann() -> Any:
    """Import ScaNN, or say how to install it."""
    try:
        return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
    except ImportError as error:
        raise ClaraError(
            "this needs the package scann (wheels: Linux x86-64): pip install scann, "
            "or search exactly"
        ) from error
