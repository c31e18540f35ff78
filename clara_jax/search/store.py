"""A store of document vectors: a Lance dataset, opened at one version.

STORE/data, _versions, ...   Lance's own files
STORE/_jobs/DIGEST/          only while something is being written, see ``writer``
STORE/index.zip              the ScaNN index, see ``scann_index``

Rows are known by Lance's stable row ids, which outlive additions, deletions and
compaction: "ids" below, ascending in the order in which rows were added. Fixed-size
columns of local files are mapped into memory; in an object store, rows are fetched.
"""

import functools
import hashlib
import itertools
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Int64, Shaped

from clara_jax.documents import Document, is_unicode
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, is_remote
from clara_jax.lance_files import map_columns, to_numpy, typed, wrong_files
from clara_jax.native import Gone, lance_at_work
from clara_jax.places import Folder
from clara_jax.search.codecs import code_type, decode, read_center
from clara_jax.search.rows import (
    checksums_of_vectors,
    damaged,
    document_columns,
    own_columns,
    read_settings,
    to_documents,
)

T = TypeVar("T")
Ids = Sequence[Any] | Int[np.ndarray, "k"]  # row ids, in any order

JOBS = "_jobs"
OPEN_FILES = 4096  # that stay mapped; Linux allows a process about 65,000 maps
_AT_ONCE = 1 << 16  # rows that one request fetches


class NoStore(ClaraError):
    """There is no store at a place, or none yet."""


class Store:
    """A whole store at one version, for any thread.

    Where a compaction has removed the files of its version, it goes on at the newest,
    unless that version was asked for.

    Attributes:
      place: a folder or a URL.
      settings: what all vectors have in common.
      num_memory, width: M vectors of D numbers per document.
      row_bytes: of the codes of a row.
      kinds: types of a row of the columns of fixed size.
    """

    def __init__(self, place: str, dataset: lance.LanceDataset, pinned: bool = False):
        """Take a dataset; use `open`."""
        self.place, self._pinned, self._lock = place, pinned, threading.RLock()
        self._set(dataset)
        self.settings = read_settings(self.schema, place)
        self.num_memory = self.settings.memory.num_memory
        self.width, self.dtype = self.settings.width, self.settings.dtype
        self.fingerprint = self.settings.fingerprint
        kind, length = code_type(self.dtype, self.width)
        kinds = {
            "codes": np.dtype((kind, (self.num_memory, length))),
            "scales": np.dtype((np.float32, (self.num_memory,))),
            "norm": np.dtype(np.float32),
            "checksum": np.dtype(np.uint64),
        }
        self.kinds = {n: k for n, k in kinds.items() if n in self.schema.names}
        self.row_bytes = kinds["codes"].itemsize
        self.center = read_center(self.settings.center, (self.num_memory, self.width))

    def _set(self, dataset: lance.LanceDataset) -> None:
        with lance_at_work(self.place):
            self.dataset, self.schema = dataset, dataset.schema
        self.columns = functools.lru_cache(OPEN_FILES)(self._read_columns)
        for name in ("_layout", "_hashes", "fragments", "_ends"):
            self.__dict__.pop(name, None)

    @classmethod
    def open(
        cls,
        place: str | os.PathLike,
        fingerprint: str | None = None,
        at: int | None = None,
    ) -> "Store":
        """Open a store, without reading vectors or documents.

        Args:
          place: a folder, or a URL such as ``s3://bucket/store``.
          fingerprint: of the model that is to read the vectors; None: any.
          at: a version, see `versions`; None: the newest.

        Raises:
          ClaraError: there is none, it is unfinished, damaged or of another format, or
            another model made it; there is no such version.
        """
        found = cls(str(place), open_dataset(place, at), pinned=at is not None)
        if fingerprint is not None:
            found.require(fingerprint)
        return found

    def require(self, fingerprint: str) -> None:
        """Refuse a model of another fingerprint."""
        if fingerprint != self.fingerprint:
            raise ClaraError(
                f"{self.place}: was made by another model: its fingerprint is "
                f"{self.fingerprint}, that of the model given is {fingerprint}; give "
                f"the model that made it ({self.settings.model}), or compress the "
                "documents into another --store"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def version(self) -> int:
        """The version that is open."""
        return self.dataset.version

    @property
    def fields(self) -> list[str]:
        """Names that a filter may use."""
        own = [column for column, _ in own_columns(self.schema).values()]
        return ["id", "title", "text", "source", *own]

    @property
    def ids(self) -> Int64[np.ndarray, "n"]:
        """Ids of all rows, ascending."""
        return self._layout[0]

    @functools.cached_property
    def _layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids, ascending, and addresses: fragment << 32 | place in it."""
        found = self._again(
            lambda: self.dataset.scanner(
                [], with_row_id=True, with_row_address=True
            ).to_table()
        )
        ids = to_numpy(found["_rowid"]).astype(np.int64)
        addresses = to_numpy(found["_rowaddr"])
        order = np.argsort(ids, kind="stable")
        return ids[order], addresses[order]

    @functools.cached_property
    def fragments(self) -> dict[int, Any]:
        """Lance's fragments by number."""
        return {f.fragment_id: f for f in self.dataset.get_fragments()}

    @functools.cached_property
    def _ends(self) -> None:
        """Refuse files with damaged ends, once, before Lance reads them."""
        for fragment in self.fragments.values():
            for path, wrong in wrong_files(self.place, fragment):
                if path.is_file():
                    raise ClaraError(f"{path}: {wrong}; see --check")

    def newest(self) -> "Store":
        """Open the same store at its newest version; refuse a pinned one."""
        if self._pinned:
            raise ClaraError(
                f"{self.place}: version {self.version} is no longer whole, as after a "
                "compaction; leave out --at, or give a version of --versions"
            )
        return Store(self.place, open_dataset(self.place))

    def refresh(self) -> None:
        """Go on at the newest version; what was deleted since is `Gone`."""
        with self._lock:
            self._set(self.newest().dataset)

    def has(self, ids: Ids) -> Bool[np.ndarray, "k"]:
        """Return whether there are rows of these ids."""
        own, numbers = self.ids, np.asarray(ids, np.int64)
        if not len(own):
            return np.zeros(len(numbers), bool)
        return own[np.minimum(np.searchsorted(own, numbers), len(own) - 1)] == numbers

    def where(self, condition: str | pc.Expression) -> Int64[np.ndarray, "n"]:
        """Return the ids of rows for which a condition holds, ascending.

        Args:
          condition: in Lance's filter language, SQL:
            ``year >= 2020 and team = 'legal'``; or an expression of pyarrow's.

        Raises:
          ClaraError: it is not a condition, or names fields that there are not.
        """
        filter = condition
        if isinstance(condition, str):
            outside = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", condition)
            depths = itertools.accumulate((c == "(") - (c == ")") for c in outside)
            if min(depths, default=0) < 0:
                raise ClaraError(f"where {condition!r}: a ')' closes no '('")
            # Lance reads no further than a whole condition, unless it is in brackets.
            filter = f"({condition})"

        def work() -> pa.Table:
            try:
                return self.dataset.scanner(
                    [], filter=filter, with_row_id=True
                ).to_table()
            except ValueError as error:
                text = first_line(error).removeprefix("Invalid user input: ")
                if re.search("Not found: [^,]*/(data|_deletions)/|corrupt", text):
                    raise
                text = re.split(r", /|\. Valid fields", text)[0]
                raise ClaraError(
                    f"where {condition!r}: {text}; the fields are "
                    f"{', '.join(self.fields)}"
                ) from error

        return np.sort(to_numpy(self._again(work)["_rowid"]).astype(np.int64))

    def vectors(self, ids: Ids) -> Float[np.ndarray, "k M D"]:
        """Read and decode the vectors of some rows, in the order asked for.

        Raises:
          ClaraError: there is no such row, or it is damaged.
        """
        found = self.arrays(ids, check=True)
        kind = self.dtype, self.width
        return decode(found["codes"], found.get("scales"), *kind, center=self.center)

    def arrays(
        self, ids: Ids, *, check: bool = False
    ) -> dict[str, Shaped[np.ndarray, "k ..."]]:
        """Read ``codes``, ``scales`` (if any) and ``norm`` of rows, see ``codecs``.

        With `check`, compare checksums.
        """
        names = [name for name in self.kinds if check or name != "checksum"]
        found = self._fixed(np.asarray(ids, np.int64), names)
        if check:
            sums = found.pop("checksum") >> np.uint64(32)
            wrong = np.flatnonzero(sums != checksums_of_vectors(found))
            if len(wrong):
                first = self.table(np.asarray(ids)[wrong[:1]], ["id", "part"])
                raise damaged(self.place, first)
        return found

    def table(self, ids: Ids, columns: Sequence[str]) -> pa.Table:
        """Read columns of some rows, in their order.

        Raises:
          Gone: there is no such row.
        """
        numbers = np.asarray(ids, np.int64)
        distinct, places = np.unique(numbers, return_inverse=True)
        self._require(distinct)

        def take(ids: np.ndarray) -> pa.Table:
            self._require(ids)
            return self.dataset._take_rows(ids.tolist(), columns=list(columns))

        cuts = range(_AT_ONCE, len(distinct), _AT_ONCE)
        parts = [
            self._again(functools.partial(take, part))
            for part in np.split(distinct, cuts)
        ]
        found = pa.concat_tables(parts)
        if found.num_rows != len(distinct):
            raise Gone(f"{self.place}: rows were deleted meanwhile; open it again")
        return found.take(places)

    def pieces(self, ids: Ids) -> list[Document]:
        """Read the documents, or pieces of documents, of some rows, in their order.

        Raises:
          ClaraError: there is no such row, or it is damaged.
        """
        return to_documents(self.table(ids, document_columns(self.schema)), self.place)

    def strings(self, ids: Ids, column: str) -> list[str]:
        """Read one field of some rows' documents: ``text``, ``id``, ``title``, ..."""
        return self.table(ids, [column])[column].to_pylist()

    def find(self, texts: Sequence[str]) -> Int64[np.ndarray, "n"]:
        """Return the lowest id of a row with each text, -1 where there is none.

        The first call reads all texts, and keeps 16 bytes of each.
        """
        hashes, ids = self._hashes
        wanted = [hash(text) for text in texts]
        ends = [np.searchsorted(hashes, wanted, side) for side in ("left", "right")]
        parts = [ids[i:j] for i, j in zip(*ends, strict=True)]
        likely = np.unique(np.concatenate([ids[:0], *parts]))
        found: dict[str, int] = {}
        for id, text in zip(likely.tolist(), self.strings(likely, "text"), strict=True):
            found.setdefault(text, id)
        return np.array([found.get(text, -1) for text in texts], np.int64)

    @functools.cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all texts, ascending, and the ids of their rows."""

        def work() -> list[np.ndarray]:
            scan = self.dataset.scanner(["text"], with_row_id=True).to_batches()
            read = (b.to_pydict() for b in scan)
            return [np.array([list(map(hash, b["text"])), b["_rowid"]]) for b in read]

        found = [np.empty((2, 0), np.int64), *self._again(work)]
        hashes, ids = np.concatenate(found, axis=1)
        order = np.lexsort((ids, hashes))
        return hashes[order], ids[order]

    def contents(self) -> str:
        """Return what tells the rows of this store from those of every other."""
        ids, found = self._again(
            lambda: (self.ids, self._fixed(self.ids, ["checksum"]))
        )
        digest = hashlib.blake2b(ids.tobytes(), digest_size=16)
        digest.update(found["checksum"].tobytes())
        return digest.hexdigest()

    def known_ids(self) -> set[str]:
        """Return the ids of all documents."""
        found = self._again(lambda: self.dataset.to_table(columns=["id"])["id"])
        return set(found.unique().to_pylist())

    def matching(self, ids: Sequence[str]) -> Int64[np.ndarray, "n"]:
        """Return the ids of all rows of documents with these ids, ascending."""
        wanted = pa.array(set(filter(is_unicode, ids)), pa.string())
        return self.where(pc.field("id").isin(wanted))

    def _require(self, ids: np.ndarray) -> None:
        wrong = ids[~self.has(ids)]
        if len(wrong):
            raise Gone(f"{self.place}: has no row {wrong[0]}, or has it no longer")

    def _again(self, work: Callable[[], T]) -> T:
        """Read; where files are gone, read again at the newest version.

        Raises:
          Gone: what is read is not there, either.
          ClaraError: a file is damaged.
        """
        self._ends  # noqa: B018
        try:
            with lance_at_work(self.place):
                return work()
        except Gone:
            self.refresh()
            with lance_at_work(self.place):
                return work()

    def _fixed(self, ids: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read columns of fixed size."""
        if is_remote(self.place):
            table = self.table(ids, names)
            return {name: typed(table[name], self.kinds[name]) for name in names}
        return self._again(lambda: self._mapped(ids, names))

    def _mapped(self, ids: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        fragments, local = self.locate(ids)
        arrays = {name: np.empty(len(ids), self.kinds[name]) for name in names}
        order = np.argsort(fragments, kind="stable")
        cuts = np.flatnonzero(np.diff(fragments[order])) + 1
        for places in np.split(order, cuts) if len(ids) else ():
            columns = self.columns(int(fragments[places[0]]))
            for name, array in arrays.items():
                array[places] = columns[name][local[places]]
        return arrays

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the fragments of rows, and their places in them.

        Raises:
          Gone: there is no such row.
        """
        own, addresses = self._layout
        places = np.searchsorted(own, ids)
        if (places == len(own)).any() or (own[places] != ids).any():
            self._require(ids)
        found = addresses[places]
        low = np.uint64(0xFFFFFFFF)
        return (found >> np.uint64(32)).astype(int), (found & low).astype(int)

    def _read_columns(self, number: int) -> dict[str, np.ndarray]:
        """Map a fragment's columns of fixed size, or read them; deleted rows, too."""
        fragment, found = self.fragments.get(number), {}
        if fragment is None:  # another thread has refreshed the store
            raise Gone(f"{self.place}: has other files now")
        with lance_at_work(self.place):
            for file in fragment.data_files():
                path = Path(self.place, "data", file.path)
                found |= map_columns(path, fragment.physical_rows, self.kinds)
        return found


def open_dataset(place: str | os.PathLike, at: int | None = None) -> lance.LanceDataset:
    """Open a dataset at a version; None: the newest.

    Raises:
      NoStore: there is none, or it is unfinished.
      ClaraError: it is damaged, or has no such version.
    """
    command = "`python -m clara_jax.compress`"
    if not is_remote(place) and Path(place).is_file():
        raise ClaraError(f"{place}: is a file; give a folder")
    try:
        with lance_at_work(str(place)):
            return lance.dataset(str(place), version=at)
    except Gone as error:
        if at is not None:
            known = [v["version"] for v in open_dataset(place).versions()]
            raise ClaraError(
                f"{place}: has no version {at}; there are "
                f"{', '.join(map(str, known[-20:]))}"
            ) from error
        names = Folder(place).names()
        if "store.json" in names:
            raise ClaraError(
                f"{place}: is a store of the format before Lance; take it over with "
                f"{command[:-1]} --convert {place} --store NEW`"
            ) from error
        what = f"holds no store of document vectors; make one with {command}"
        if any(name.startswith(f"{JOBS}/") for name in names):
            what = f"is not finished; go on with the same {command}"
        raise NoStore(f"{place}: {what}") from error
    except ClaraError as error:
        hint = "an earlier version may be whole: answer --at N"
        said = str(error).replace("look at it with --check", hint)
        raise ClaraError(said) from error
