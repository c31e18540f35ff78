"""Batches out of windows of examples sorted by length, for any number of processes.

The batches of a window depend on its examples' lengths alone. Each process measures its
share of them, all tell each other, and each then makes its own rows of every batch: so
a global batch is the same whoever takes part, and nobody reads everything.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from clara_jax.clara.batches import Batch
from clara_jax.data.collate import Layout, Vectors, collate, longest_of, measure
from clara_jax.data.examples import Example


class Examples(Protocol):
    """Examples by index."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Make one of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """What one of several processes does of every batch.

    Attributes:
      rows: the rows of a batch that it makes, ascending; None makes all.
      index, count: which process it is, of how many.
      gather: stacks the arrays ``[...]`` of all processes to ``[count, ...]``.
    """

    rows: tuple[int, ...] | None = None
    index: int = 0
    count: int = 1
    gather: Callable[[np.ndarray], np.ndarray] = lambda x: x[None]


WHOLE = Part()
"""Of a process that is alone."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """A stream of batches; every iterator over it begins anew.

    Attributes:
      examples: by index; drawn in the order of their indices.
      layout: shapes of batches.
      batch_size: examples a batch.
      window: batches whose examples are sorted together; 1 keeps the order.
      seed: of the order of a window's batches.
      drop_remainder: leave out a last batch that is not full; else it is filled up with
        empty rows.
      workers: threads that make examples ahead; 0 makes them when they are needed.
      vectors: see `collate`.
      part: of this process.
    """

    examples: Examples
    layout: Layout
    batch_size: int
    window: int = 1
    seed: int = 0
    drop_remainder: bool = True
    workers: int = 0
    vectors: Vectors | None = None
    part: Part = WHOLE

    def __iter__(self) -> WindowIterator:
        return WindowIterator(self)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of a batch that this process makes."""
        if self.part.rows is None:
            return tuple(range(self.batch_size))
        return self.part.rows

    def indices(self, number: int) -> range:
        """Examples of a window, counted from 0."""
        size = self.batch_size * self.window
        found = range(number * size, min((number + 1) * size, len(self.examples)))
        if self.drop_remainder:
            found = found[: len(found) // self.batch_size * self.batch_size]
        return found


class WindowIterator(Iterator[Batch]):
    """Batches, and the place in their stream: a window's number and a batch in it."""

    def __init__(self, settings: Windows):
        self._settings = settings
        self._number = -1
        self._position = 0
        self._batches: list[tuple[Sequence[int], Any]] = []
        self._kept: dict[int, Example] = {}
        limit = max(2 * len(settings.rows), 16)
        self._ahead = _Ahead(settings.examples.__getitem__, settings.workers, limit)

    def __next__(self) -> Batch:
        return self.draw()[0]

    def draw(self) -> tuple[Batch, list[Example]]:
        """Return the next batch and the examples of this process's rows of it.

        Raises:
          StopIteration: there is none.
        """
        if self._position >= len(self._batches):
            batches = self._open(self._number + 1)
            if not batches:
                raise StopIteration
            self._batches = batches
            self._number, self._position = self._number + 1, 0
        settings = self._settings
        indices, lengths = self._batches[self._position]
        self._position += 1
        examples = [self._example(index) for index in self._own(indices)]
        batch = collate(
            examples, settings.layout, len(settings.rows), settings.vectors, lengths
        )
        return batch, examples

    def get_state(self) -> dict[str, Any]:
        """Where the next batch stands, as a JSON value."""
        return {"window": self._number, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called, on any number of processes."""
        self._number, self._position = state["window"], state["position"]
        self._batches = self._open(self._number) if self._number >= 0 else []

    def _own(self, indices: Sequence[int]) -> list[int]:
        """This process's examples of a batch; a last batch may have too few."""
        return [indices[row] for row in self._settings.rows if row < len(indices)]

    def _example(self, index: int) -> Example:
        kept = self._kept.pop(index, None)
        return self._ahead.get(index) if kept is None else kept

    def _open(self, number: int) -> list[tuple[Sequence[int], Any]]:
        """Batches of a window, as indices and the longest rows in them."""
        settings = self._settings
        indices, size = settings.indices(number), settings.batch_size
        self._kept = {}
        found: list[tuple[Sequence[int], Any]] = []
        if settings.layout.has_choice and indices:
            lengths = self._measure(indices)
            order = np.arange(len(indices))
            if settings.window > 1:
                order = np.argsort(lengths[:, 0], kind="stable")
            for start in range(0, len(order), size):
                some = order[start : start + size]
                found.append(([indices[i] for i in some], longest_of(lengths[some])))
        else:
            found = [
                (indices[start : start + size], None)
                for start in range(0, len(indices), size)
            ]
        if settings.window > 1:
            draw = np.random.default_rng((settings.seed, number))
            found = [found[i] for i in draw.permutation(len(found))]
        for batch, _ in found:
            self._ahead.plan(i for i in self._own(batch) if i not in self._kept)
        # With a window of one batch, two of them are not too many to have ready.
        for following in range(number + 1, number + (2 if settings.window > 1 else 3)):
            then = settings.indices(following)
            own = self._own(then)
            if settings.layout.has_choice:
                own = then[settings.part.index :: settings.part.count]
            self._ahead.plan(own)
        return found

    def _measure(self, indices: range) -> np.ndarray:
        """Lengths of a window's examples, each measured by one process."""
        part = self._settings.part
        own = indices[part.index :: part.count]
        self._ahead.plan(own)
        table = np.zeros((-(-len(indices) // part.count), 4), np.int32)
        for row, index in enumerate(own):
            self._kept[index] = example = self._ahead.get(index)
            table[row] = measure(example)
        gathered = np.asarray(part.gather(table))
        return np.swapaxes(gathered, 0, 1).reshape(-1, 4)[: len(indices)]


class _Ahead:
    """Examples made by threads a little before they are asked for, in that order."""

    def __init__(self, make: Callable[[int], Example], workers: int, limit: int):
        self._make, self._limit = make, limit
        self._backlog: dict[int, None] = {}
        self._begun: dict[int, concurrent.futures.Future[Example]] = {}
        self._pool = None
        if workers:
            self._pool = concurrent.futures.ThreadPoolExecutor(workers, "examples")

    def plan(self, indices: Iterable[int]) -> None:
        """Note what will be asked for next."""
        if self._pool is not None:
            self._backlog.update(dict.fromkeys(indices))
            self._begin()

    def get(self, index: int) -> Example:
        """Return one example, waiting for it if need be."""
        self._backlog.pop(index, None)
        begun = self._begun.pop(index, None)
        self._begin()
        return self._make(index) if begun is None else begun.result()

    def _begin(self) -> None:
        while self._pool and self._backlog and len(self._begun) < self._limit:
            index = next(iter(self._backlog))
            del self._backlog[index]
            if index not in self._begun:
                self._begun[index] = self._pool.submit(self._make, index)
