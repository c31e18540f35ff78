"""Approximate search: ScaNN over short keys, then exact cosines of the best few.

STORE/index.zip   a note, the keys' projection, an id for each place, ScaNN's own files

The file is replaced whole or not at all, and all checksums (CRC-32) of what is in it
are compared whenever it is read.

Documents that the index lacks, which were added since or are of an earlier version, are
compared exactly beside it, and deleted ones are left out.
"""

import dataclasses
import importlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from clara_jax.errors import ClaraError
from clara_jax.files import first_line, json_bytes, writing
from clara_jax.native import scann_at_work
from clara_jax.places import Folder
from clara_jax.search.exact import (
    ExactSearcher,
    Flat,
    Found,
    Searcher,
    check_queries,
    few,
    meeting,
    nearest_of,
)
from clara_jax.search.keys import (
    DIMS,
    SAMPLE,
    Keys,
    Short,
    keep_keys,
    learn_keys,
    unit_vectors,
)
from clara_jax.search.store import Store

SEARCHES = ("auto", "exact", "scann")
METHODS = ("brute_force", "hashing", "tree")
# ScaNN's rules of thumb: documents from which on the next method is worth it.
BRUTE_FORCE_BELOW, HASHING_BELOW = 20_000, 100_000

FORMAT, NAME = 3, "index.zip"
_NOTE, _KEYS, _IDS = "note.json", "keys.npz", "ids.npy"

HELD_OUT = 200  # documents that keys are not learnt from, at most; a tenth of few


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


class Index(NamedTuple):
    """What an index holds.

    The note: ``fingerprint`` of the store; ``documents``, how many are indexed;
    ``settings``; ``held_out``, ids of rows that keys were not learnt from.
    """

    note: dict[str, Any]
    keys: Keys
    ids: Int[np.ndarray, "n"]  # of the row at each place in ScaNN's index
    searcher: Any  # ScaNN's own


def open_searcher(
    store: Store, kind: str = "auto", *, memory_limit: int | None = None
) -> Searcher:
    """Open a search over a store.

    Args:
      store: what is searched.
      kind: one of `SEARCHES`; ``auto`` is ``scann`` where there is an index.
      memory_limit: of the exact search, see `ExactSearcher`.

    Raises:
      ClaraError: the index is missing, damaged or of another store.
    """
    if kind not in SEARCHES:
        raise ClaraError(f"no search '{kind}'; give one of {', '.join(SEARCHES)}")
    if kind == "exact" or (kind == "auto" and not has_index(store)):
        return ExactSearcher(store, memory_limit=memory_limit)
    return ScannSearcher(store, memory_limit=memory_limit)


class ScannSearcher:
    """Search through a store's ScaNN index, in memory; a ``Searcher``, for any thread.

    `memory_limit` is of the exact search among documents that the index lacks; `note`
    is what it holds, see `build_index`.

    Raises:
      ClaraError: there is no index, it is damaged, or of other vectors.
    """

    def __init__(self, store: Store, *, memory_limit: int | None = None):
        self._limit = memory_limit
        self._open(store)

    def _open(self, store: Store) -> None:
        self.store = store
        self.note, self._keys, self._rows, self._scann = read_index(store)
        self._settings = Settings(**self.note["settings"])
        self._live = store.has(self._rows)
        self._others, others = None, np.setdiff1d(store.ids, self._rows, True)
        if len(others):
            self._others = ExactSearcher(store, memory_limit=self._limit, among=others)

    def renew(self) -> None:
        """Go on with the newest version of the store."""
        self._open(self.store.newest())

    def __call__(
        self,
        queries: Flat,
        k: int,
        texts: Sequence[str] | None = None,
        where: str | None = None,
    ) -> Found:
        """Return cosines and ids of the `k` nearest of the candidates."""
        units = check_queries(queries, k, self.store)
        live, others = self._live, self._others
        if where is not None:
            allowed = meeting(self.store, where)
            k = min(k, len(allowed))
            if len(allowed) <= few(self.store):
                return nearest_of(self.store, units, [allowed] * len(units), k)
            live = live & np.isin(self._rows, allowed)
            if others is not None and not np.isin(others.ids, allowed).any():
                others = None
        wanted = max(self._settings.candidates, k)
        ids = self._find(self._keys.of_queries(units), wanted, live)
        if others is not None and len(units):
            more = others(units, min(k, others.documents), where=where)[1]
            ids = [np.append(*both) for both in zip(ids, more, strict=True)]
        return nearest_of(self.store, units, ids, k)

    def _find(
        self, keys: Short, wanted: int, live: Bool[np.ndarray, "N"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Return ids of the best keys; ask for more until `wanted` are `live`."""
        documents = int(np.count_nonzero(live))
        wanted = min(wanted, documents)
        found: list[Int[np.ndarray, "_"]] = [self._rows[:0]] * len(keys)
        waiting = np.arange(len(keys) if wanted else 0)
        most, all_leaves = len(self._rows), self._settings.leaves
        # As many as there must be among them, were they no nearer than others.
        count = min(wanted * most // max(documents, 1), most)
        leaves = self._settings.leaves_to_search
        while len(waiting):
            search = self._scann.search_batched
            if len(waiting) > 1:
                search = self._scann.search_batched_parallel
            asked = search(
                np.ascontiguousarray(keys[waiting], np.float32),
                final_num_neighbors=count,
                leaves_to_search=leaves or None,
            )
            for i, places, scores in zip(waiting, *asked, strict=True):
                # Where there are fewer, ScaNN fills up with place 0 and no score.
                places = places[~np.isnan(scores)]
                found[i] = self._rows[places[live[places]]]
            if (count, leaves) == (most, all_leaves):
                break
            waiting = waiting[[len(found[i]) < wanted for i in waiting]]
            count, leaves = min(2 * count, most), min(2 * leaves, all_leaves)
        return [rows[:wanted] for rows in found]


def choose(documents: int, **given: Any) -> Settings:
    """Choose what is not given, or None, of an index's settings, by ScaNN's rules.

    A tree has about the square root of the documents as leaves, of which a fifth is
    searched, 20 at least.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, least in {"dims": 1, "candidates": 1, "sample": 1, "seed": 0}.items():
        if given.get(name, least) < least:
            raise ClaraError(f"{name} {given[name]}: give {least} or more")
    method = "brute_force" if documents < BRUTE_FORCE_BELOW else "hashing"
    if "leaves" in given or documents >= HASHING_BELOW:
        method = "tree"
    method = given.setdefault("method", method)
    if method not in METHODS:
        raise ClaraError(f"no index is called '{method}'; give {', '.join(METHODS)}")
    leaves = given.setdefault("leaves", max(1, round(math.sqrt(documents))))
    if not 1 <= leaves <= max(documents, 1):
        raise ClaraError(f"{leaves} leaves: give 1 to {documents}, one per document")
    fifth = min(leaves, max(20, math.ceil(leaves / 5)))
    searched = given.setdefault("leaves_to_search", fifth)
    if not 1 <= searched <= leaves:
        raise ClaraError(f"{searched} leaves to search: give 1 to {leaves}")
    if method != "tree":
        given |= {"leaves": 0, "leaves_to_search": 0, "soar": False}
    return Settings(**given)


def build_index(store: Store, **given: Any) -> dict[str, Any]:
    """Build the ScaNN index of a store, in place of the one that is there.

    In memory are the keys (4 bytes x 129 a document) and ScaNN's own copy. For what may
    be `given`, fields of `Settings`, see `choose`.

    Returns:
      What the index holds, see `Index`.

    Raises:
      ClaraError: a setting makes no sense, the store is empty, the disk is full, or
        ScaNN is not installed.
    """
    scann()  # missing, it is missed before any work
    ids = store.ids
    if not len(ids):
        raise ClaraError(f"{store.place}: holds no documents to index")
    settings = choose(len(ids), **given)
    count = min(HELD_OUT, len(ids) // 10)
    draw = np.random.default_rng(settings.seed)
    held_out = np.sort(draw.choice(ids, count, replace=False))
    sizes = {name: getattr(settings, name) for name in ("dims", "sample", "seed")}
    keys = learn_keys(store, **sizes, leave_out=held_out)
    parts = unit_vectors(store, ids, "keys of documents")
    found = np.concatenate([keys.of_documents(units) for units in parts])
    searcher = _build(store.place, found, settings)
    note = {
        "documents": len(ids),
        "settings": dataclasses.asdict(settings),
        "held_out": held_out.tolist(),
        "fingerprint": store.fingerprint,
    }
    write_index(store, Index(note, keys, ids, searcher))
    keep_keys(store, ids, found)
    return note


def has_index(store: Store) -> bool:
    """Return whether a store has a ScaNN index, be it out of date."""
    return Folder(store.place).has(NAME)


def read_index(store: Store) -> Index:
    """Read the index of a store.

    Raises:
      ClaraError: there is none, it is damaged, or of other vectors.
    """
    where = f"{store.place}/{NAME}"
    if not has_index(store):
        raise _useless(store, store.place, "has no ScaNN index")
    with Folder(store.place).fetch(NAME) as file, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(folder)
                note = json.loads(archive.read(_NOTE))
                if note.pop("format") != FORMAT:
                    raise ValueError(f"it is not of format {FORMAT}")
                if sorted(archive.namelist()) != note.pop("files"):
                    raise ValueError("it is not whole")
            keys, ids = Keys.load(folder / _KEYS), np.load(folder / _IDS)
        except OSError:  # no room
            raise
        except Exception as e:  # whatever damaged bytes lead to
            raise _useless(store, where, f"cannot be read ({first_line(e)})") from e
        if note["fingerprint"] != store.fingerprint:
            what = "was built for vectors of another model (fingerprint "
            what += f"{note['fingerprint']}, the store's is {store.fingerprint})"
            raise _useless(store, where, what)
        with scann_at_work(where, "load it; build it again"):
            return Index(note, keys, ids, scann().load_searcher(str(folder)))


def write_index(store: Store, index: Index) -> None:
    """Put an index in the place of the one that is there.

    Raises:
      ClaraError: the disk is full, and the old index stays.
    """
    here, note = Folder(store.place), {**index.note, "format": FORMAT}
    with tempfile.TemporaryDirectory() as made, writing(made):
        folder = Path(made)
        index.keys.save(folder / _KEYS)
        np.save(folder / _IDS, index.ids)
        with scann_at_work(folder, "write its files; is the disk full?"):
            index.searcher.serialize(str(folder), relative_path=True)
            size = scann().load_searcher(str(folder)).size()
        if size != len(index.ids):
            raise ClaraError(f"{folder}: ScaNN wrote {size} of {len(index.ids)} keys")
        names = sorted(os.listdir(folder))
        for left in here.names():  # by a process that was killed
            if left.startswith(f".{NAME}."):
                here.remove(left)
        with here.put(NAME) as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr(
                _NOTE, json_bytes({**note, "files": sorted([*names, _NOTE])})
            )
            for name in names:
                archive.write(folder / name, name)


def _useless(store: Store, where: str, what: str) -> ClaraError:
    """Return the error for an index that does not serve, with the remedy."""
    return ClaraError(
        f"{where}: {what}; build it with `python -m clara_jax.compress index --store "
        f"{store.place}`, or search without it"
    )


def _build(where: str, keys: Short, settings: Settings) -> Any:
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
