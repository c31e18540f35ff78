"""Where documents stand that questions are answered from: given now, or in a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.generate import Clara
from clara_jax.generate.batched import AnyArray
from clara_jax.search.exact import Searcher
from clara_jax.search.hybrid import HybridSearcher
from clara_jax.search.store import Store
from clara_jax.shapes import Float


@runtime_checkable
class Shelf(Protocol):
    """Documents that have vectors, by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def numbers(self) -> list[int]:
        """Of all documents, in order."""
        ...

    def search(
        self, clara: Clara, question: str, top_k: int
    ) -> tuple[list[int], tuple[float, ...]]:
        """Numbers of the best documents, best first, and their cosines."""
        ...

    def vectors(self, clara: Clara, chosen: Sequence[int]) -> Float[AnyArray, "J M D"]:
        """Vectors of documents."""
        ...

    def documents(self, chosen: Sequence[int]) -> tuple[Document, ...]:
        """Texts of documents, and where they come from."""
        ...


class Given:
    """Documents compressed now and kept in memory.

    Args:
      clara: the model.
      documents: at least one.
    """

    def __init__(self, clara: Clara, documents: Sequence[Document]):
        self._documents = tuple(documents)
        self._vectors = _compress(clara, [document.text for document in documents])

    def __len__(self) -> int:
        return len(self._documents)

    def numbers(self) -> list[int]:
        """See `Shelf`."""
        return list(range(len(self._documents)))

    def search(
        self, clara: Clara, question: str, top_k: int
    ) -> tuple[list[int], tuple[float, ...]]:
        """Compare the question with every document; see `Shelf`."""
        query = clara.reason([question])
        indices, cosines = clara.select(query, self._vectors, top_k)
        chosen = indices[0].tolist()
        return chosen, tuple(cosines[0, chosen].tolist())

    def vectors(self, clara: Clara, chosen: Sequence[int]) -> Float[AnyArray, "J M D"]:
        """See `Shelf`."""
        return self._vectors[list(chosen)]

    def documents(self, chosen: Sequence[int]) -> tuple[Document, ...]:
        """See `Shelf`."""
        return tuple(self._documents[i] for i in chosen)


class Stored:
    """Documents of a store, found by a searcher.

    Args:
      store: made by the model that is going to ask.
      searcher: over this store.
    """

    def __init__(self, store: Store, searcher: Searcher | HybridSearcher):
        if not len(store):
            raise ClaraError(f"{store.path}: holds no documents; compress some into it")
        self._store, self._searcher = store, searcher

    def __len__(self) -> int:
        return len(self._store)

    def numbers(self) -> list[int]:
        """See `Shelf`."""
        return np.flatnonzero(self._store.live).tolist()

    def search(
        self, clara: Clara, question: str, top_k: int
    ) -> tuple[list[int], tuple[float, ...]]:
        """Search the store; see `Shelf`."""
        query = clara.reason([question])
        flat = np.asarray(query, np.float32).reshape(1, -1)
        with clara.watch("search"):
            if isinstance(self._searcher, HybridSearcher):
                scores, rows = self._searcher(flat, top_k, [question])
            else:
                scores, rows = self._searcher(flat, top_k)
        return rows[0].tolist(), tuple(scores[0].tolist())

    def vectors(self, clara: Clara, chosen: Sequence[int]) -> Float[AnyArray, "J M D"]:
        """See `Shelf`."""
        with clara.watch("gather"):
            found = self._store.vectors(np.asarray(chosen, np.int64))
        return found.astype(clara.network.model.config.dtype)

    def documents(self, chosen: Sequence[int]) -> tuple[Document, ...]:
        """See `Shelf`."""
        return tuple(self._store.pieces(np.asarray(chosen, np.int64)))


def _compress(clara: Clara, texts: Sequence[str]) -> np.ndarray:
    """Vectors of all texts; a bar appears when it takes long."""
    step = 8 * clara.config.batch_size
    parts = []
    with tqdm(desc="compress", total=len(texts), unit="doc", delay=2) as bar:
        for begin in range(0, len(texts), step):
            chunk = texts[begin : begin + step]
            parts.append(clara.compress(chunk))
            bar.update(len(chunk))
    return np.concatenate(parts)
