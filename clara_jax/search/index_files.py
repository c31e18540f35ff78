"""A ScaNN index in its file, which is replaced whole or not at all.

STORE/index.zip   a note, the keys' projection, an id for each place, ScaNN's own files

The checksums (CRC-32) of all that is in it are compared whenever it is read.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, json_bytes, writing
from clara_jax.native import quiet, scann_at_work
from clara_jax.places import Folder
from clara_jax.search.keys import DIMS, SAMPLE, Keys, Short
from clara_jax.search.store import Store

FORMAT, NAME = 3, "index.zip"
_NOTE, _KEYS, _IDS = "note.json", "keys.npz", "ids.npy"


class Index(NamedTuple):
    """What an index holds.

    The note: ``fingerprint`` of the store; ``documents``, how many are indexed;
    ``settings``; ``held_out``, ids of rows that keys were not learnt from.
    """

    note: dict[str, Any]
    keys: Keys
    ids: Int[np.ndarray, "n"]  # of the row at each place in ScaNN's index
    searcher: Any  # ScaNN's own


def has_index(store: Store) -> bool:
    """Return whether a store has a ScaNN index, be it out of date."""
    return Folder(store.place).has(NAME)


def read(store: Store) -> Index:
    """Read the index of a store.

    Raises:
      ClaraError: there is none, it is damaged, or of other vectors.
    """
    where = f"{store.place}/{NAME}"
    if not has_index(store):
        raise _useless(store, store.place, "has no ScaNN index")
    with Folder(store.place).fetch(NAME) as file, _room() as folder:
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
                note = json.loads(archive.read(_NOTE))
                found, files = note.pop("format"), note.pop("files")
                if sorted(archive.namelist()) != files:
                    raise ValueError("it is not whole")
            if found == FORMAT:
                keys, ids = Keys.load(folder / _KEYS), np.load(folder / _IDS)
        except OSError:  # no room
            raise
        except Exception as e:  # whatever damaged bytes lead to
            raise _useless(store, where, f"is damaged ({first_line(e)})") from e
        if found != FORMAT:
            what = f"is not of format {FORMAT}, which this version of clara_jax reads"
            raise _useless(store, where, what)
        if note["fingerprint"] != store.fingerprint:
            what = "was built for vectors of another model (fingerprint "
            what += f"{note['fingerprint']}, the store's is {store.fingerprint})"
            raise _useless(store, where, what)
        return Index(note, keys, ids, _load(folder))


def write(store: Store, index: Index) -> None:
    """Put an index in the place of the one that is there.

    Raises:
      ClaraError: the disk is full, and the old index stays.
    """
    here, note = Folder(store.place), {**index.note, "format": FORMAT}
    for left in here.names():  # by a process that was killed
        if left.startswith(f".{NAME}."):
            here.remove(left)
    with _room() as folder, here.put(NAME) as file:
        index.keys.save(folder / _KEYS)
        np.save(folder / _IDS, index.ids)
        with scann_at_work(folder, "write its files; is the disk full?"):
            index.searcher.serialize(str(folder), relative_path=True)
            size = _load(folder).size()
        if size != len(index.ids):
            raise ClaraError(f"{folder}: ScaNN wrote {size} of {len(index.ids)} keys")
        names = sorted(os.listdir(folder))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(
                _NOTE, json_bytes({**note, "files": sorted([*names, _NOTE])})
            )
            for name in names:
                archive.write(folder / name, name)


@contextlib.contextmanager
def _room() -> Iterator[Path]:
    """Give a folder for ScaNN's files, which knows no others."""
    with tempfile.TemporaryDirectory() as folder, writing(folder):
        yield Path(folder)


def _load(folder: Path) -> Any:
    with quiet():
        return scann().load_searcher(str(folder))


def _useless(store: Store, where: str, what: str) -> ClaraError:
    """Return the error for an index that does not serve, with the remedy."""
    return ClaraError(
        f"{where}: {what}; build it with `python -m clara_jax.compress index --store "
        f"{store.place}`, or search without it"
    )


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


def scann() -> Any:
    """Import ScaNN, or say how to install it."""
    try:
        return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
    except ImportError as error:
        raise ClaraError(
            "this needs the package scann (wheels: Linux x86-64): pip install scann, "
            "or search exactly"
        ) from error
