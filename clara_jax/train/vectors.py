"""Document vectors of a whole data set, from a store or made once before training.

The compressor is frozen in end_to_end and rerank, so the vectors never change. Those
that are made lie in one memory-mapped file, which an interrupted command goes on
writing where it was.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax.clara import vector_fingerprint
from clara_jax.config import to_dict
from clara_jax.data import UniqueDocuments
from clara_jax.distributed import first, is_first, report
from clara_jax.files import read_json, reserve, write_json, writing
from clara_jax.generate import Clara
from clara_jax.search import Store
from clara_jax.shapes import Float, Int
from clara_jax.train.parts import Parts

CHUNK = 512
"""Documents between two notes of how far the file is written; on CPUs 64 at most."""

_AT_ONCE = 4096
"""Documents that are looked up in a store together."""


def cached_vectors(
    folder: Path,
    clara: Clara,
    documents: Sequence[str] | UniqueDocuments,
    *,
    check: Callable[[], object] = lambda: None,
    late: Callable[[int], bool] | None = None,
) -> np.ndarray:
    """Compress every document, or find that an earlier command did.

    The `folder` holds ``vectors.bin`` and ``vectors.json``. After every chunk `check`
    may raise to end early, and `late` is asked whether to make do with so many
    documents as are done by then; a command that goes on then does, too.

    Returns:
      A memory map ``[len(documents), M, D]`` in the compute type, of the first
      documents only after `late`.

    Raises:
      ClaraError: the file cannot be written.
    """
    network, memory = clara.network, clara.memory
    shape = (len(documents), memory.num_memory, network.model.config.width)
    dtype = np.dtype(network.model.config.dtype)  # bfloat16 too: JAX registers it
    digest = hashlib.blake2b(vector_fingerprint(network).encode(), digest_size=16)
    for text in documents:
        digest.update(text.encode() + b"\0")
    note = {
        "shape": list(shape),
        "dtype": dtype.name,
        "memory": to_dict(memory),
        "fingerprint": digest.hexdigest(),
    }
    data, notes = folder / "vectors.bin", folder / "vectors.json"

    def prepare() -> list[Any]:
        before = read_json(notes) if data.exists() and notes.exists() else {}
        same = {k: before.get(k) for k in note} == note
        done = before["done"] if same else 0
        with writing(data):
            folder.mkdir(parents=True, exist_ok=True)
            if not done:
                notes.unlink(missing_ok=True)
                reserve(data, int(np.prod(shape)) * dtype.itemsize)
        return [done, same and before.get("enough", False) and late is not None]

    def keep(begin: int, end: int, found: Any) -> None:
        vectors[begin:end] = np.asarray(found)
        vectors.flush()
        write_json(notes, {**note, "done": end})

    done, enough = first(prepare)
    if done == len(documents) or enough:
        return np.memmap(data, dtype, "r", shape=(done, *shape[1:]))
    vectors = np.memmap(data, dtype, "r+", shape=shape)
    chunk = min(CHUNK, 64) if jax.default_backend() == "cpu" else CHUNK
    with tqdm(
        total=len(documents),
        initial=done,
        desc="compress documents",
        unit="doc",
        disable=not is_first(),
    ) as bar:
        for begin in range(done, len(documents), chunk):
            texts = documents[begin : begin + chunk]
            found = clara.compress(list(texts))
            done = begin + len(texts)
            first(partial(keep, begin, done, found))
            bar.update(len(texts))
            if done == len(documents):
                break
            check()
            # By the clock of the first process, for all.
            if late is not None and first(partial(late, done)):
                last = {**note, "done": done, "enough": True}
                first(partial(write_json, notes, last))
                break
    return np.memmap(data, dtype, "r", shape=(done, *shape[1:]))


@dataclasses.dataclass(frozen=True)
class StoredVectors:
    """Vectors by number of a document, from a store and from those compressed besides.

    Attributes:
      rows: of each document its row in the store, or ``~i`` for the i-th of `others`.
      others: ``[U, M, D]`` vectors of documents that the store does not have.
    """

    store: Store
    rows: Int[np.ndarray, "U"]
    others: np.ndarray | None
    dtype: str

    def __call__(self, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n M D"]:
        """Return the vectors of the documents of these numbers, in their order."""
        rows = self.rows[numbers]
        distinct, places = np.unique(rows[rows >= 0], return_inverse=True)
        shape = (len(rows), self.store.num_memory, self.store.width)
        found = np.empty(shape, np.dtype(self.dtype))
        found[rows >= 0] = self.store.vectors(distinct).astype(found.dtype)[places]
        if self.others is not None:
            found[rows < 0] = self.others[~rows[rows < 0]]
        return found


@dataclasses.dataclass
class _Some(Sequence[str]):
    """The documents of a data set with the given numbers, as one sequence."""

    documents: UniqueDocuments
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.documents[i] for i in self.numbers[index]]
        return self.documents[self.numbers[index]]


def document_vectors(
    parts: Parts,
    documents: UniqueDocuments,
    check: Callable[[], object],
    late: Callable[[int], bool] | None,
) -> Any:
    """Return what gives ``[n, M, D]`` for numbers of documents of a run.

    They are compressed where no store has them. For `check` and `late` see
    `cached_vectors`; with a store, `late` is not asked.
    """
    config, store = parts.config, parts.store
    how = dataclasses.replace(
        parts.clara.config, batch_size=max(32, config.data.eval_batch_size)
    )
    clara = dataclasses.replace(parts.clara, config=how)
    folder = Path(config.workdir) / "vectors"
    make = partial(cached_vectors, folder, clara, check=check)
    if store is None:
        return make(documents, late=late)
    starts = range(0, len(documents), _AT_ONCE)
    found = [store.find(documents[start : start + _AT_ONCE]) for start in starts]
    rows = np.concatenate([np.zeros(0, np.int64), *found])
    missing = np.flatnonzero(rows < 0)
    rows[missing] = ~np.arange(len(missing))
    have = len(documents) - len(missing)
    report(f"{config.store}: has {have} of {len(documents)} candidate documents")
    others = make(_Some(documents, missing.tolist())) if len(missing) else None
    return StoredVectors(store, rows, others, config.dtype)
