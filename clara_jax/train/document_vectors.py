"""Document vectors of a whole data set, from a store or made once before training.

The compressor is frozen in end_to_end and rerank, so the vectors never change. Those
that are made become a store in the run's folder; row i is document i.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax.data import UniqueDocuments
from clara_jax.distributed import first, is_first, report
from clara_jax.documents import Document
from clara_jax.files import writing
from clara_jax.generate import Clara
from clara_jax.loading import store_settings
from clara_jax.search import Job, Store
from clara_jax.shapes import Float, Int
from clara_jax.train.parts import Parts

CHUNK = 512
"""Documents that are written together; on CPUs 64 at most."""

_AT_ONCE = 1 << 16
"""Documents that are looked up in a store together."""


def store_vectors(
    folder: Path,
    clara: Clara,
    documents: Sequence[str] | UniqueDocuments,
    *,
    check: Callable[[], object] = lambda: None,
    late: Callable[[int], bool] | None = None,
) -> Store:
    """Compress every document into a store, or find that an earlier command did.

    The `folder` holds the store, and no others. After every chunk `check` may raise to
    end early, and `late` is asked whether to make do with so many documents as are done
    by then; a command that goes on then does, too.

    Returns:
      The store, of the first documents only after `late`; vectors are kept in the
      compute type.

    Raises:
      ClaraError: it cannot be written.
    """
    narrow = clara.network.model.config.dtype == "bfloat16"
    settings = store_settings(clara, dtype="bfloat16" if narrow else "float32")
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for text in documents:
        digest.update(text.encode() + b"\0")
    place = folder / digest.hexdigest()
    chunk = min(CHUNK, 64) if jax.default_backend() == "cpu" else CHUNK
    shards = whole = -(-len(documents) // chunk)

    def begin() -> Job:
        return Job.begin(place, settings, whole, {"documents": digest.hexdigest()})

    def prepare() -> list[int]:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.iterdir():
                if other != place:
                    shutil.rmtree(other, ignore_errors=True)
        job = begin()
        if job.finished and late is None and len(Store.open(place)) < len(documents):
            shutil.rmtree(place)  # there is time for all of them now
            job = begin()
        return job.missing()

    def keep(k: int, texts: Sequence[str], found: Float[np.ndarray, "n M D"]) -> None:
        begin().write(k, np.asarray(found), [Document(text) for text in texts])

    missing = first(prepare)
    done = min((missing[0] if missing else shards) * chunk, len(documents))
    with tqdm(
        total=len(documents),
        initial=done,
        desc="compress documents",
        unit="doc",
        disable=not is_first(),
    ) as bar:
        for k in missing:
            texts = documents[k * chunk : (k + 1) * chunk]
            first(partial(keep, k, texts, clara.compress(list(texts))))
            bar.update(len(texts))
            if k == missing[-1]:
                break
            check()
            # By the clock of the first process, for all.
            if late is not None and first(partial(late, k * chunk + len(texts))):
                shards = k + 1
                break
    first(lambda: begin().commit(shards) is None)
    return Store.open(place)


@dataclasses.dataclass(frozen=True)
class StoredVectors:
    """Vectors by number of a document, out of one or two stores.

    Attributes:
      store: has the vectors of most documents.
      rows: of each document its id in the store, or ``~i`` for row i of `others`.
      others: a store of documents that the first does not have.
      dtype: of the vectors that are returned.
    """

    store: Store
    rows: Int[np.ndarray, "U"]
    others: Store | None
    dtype: str

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n M D"]:
        """Return the vectors of the documents of these numbers, in their order."""
        rows = self.rows[numbers]
        shape = (len(rows), self.store.num_memory, self.store.width)
        found = np.empty(shape, np.dtype(self.dtype))
        for store, own in ((self.store, rows >= 0), (self.others, rows < 0)):
            if store is not None and own.any():
                ids = np.where(rows < 0, ~rows, rows)[own]
                distinct, places = np.unique(ids, return_inverse=True)
                found[own] = store.vectors(distinct).astype(found.dtype)[places]
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
) -> StoredVectors:
    """Return what gives ``[n, M, D]`` for numbers of documents of a run.

    They are compressed where no store has them. For `check` and `late` see
    `store_vectors`; with a store, `late` is not asked.
    """
    config, store = parts.config, parts.store
    how = dataclasses.replace(
        parts.clara.config, batch_size=max(32, config.data.eval_batch_size)
    )
    clara = dataclasses.replace(parts.clara, config=how)
    folder = Path(config.workdir) / "vectors"
    make = partial(store_vectors, folder, clara, check=check)
    if store is None:
        made = make(documents, late=late)
        return StoredVectors(made, made.ids, None, config.dtype)
    starts = range(0, len(documents), _AT_ONCE)
    found = [store.find(documents[start : start + _AT_ONCE]) for start in starts]
    rows = np.concatenate([np.zeros(0, np.int64), *found])
    missing = np.flatnonzero(rows < 0)
    rows[missing] = ~np.arange(len(missing))
    have = len(documents) - len(missing)
    report(f"{config.store}: has {have} of {len(documents)} candidate documents")
    others = make(_Some(documents, missing.tolist())) if len(missing) else None
    return StoredVectors(store, rows, others, config.dtype)
