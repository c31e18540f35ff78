"""Records to batches: shuffled, bucketed by length, resumable at any batch (Grain).

In training, the examples of a window, ``data.window`` batches, are sorted by length and
cut into batches. These depend on the examples' lengths alone: each process measures its
share of them, all exchange what they found, and each then makes its own rows of every
batch. So a global batch is the same for any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import grain
import numpy as np

from clara_jax.clara.batches import Batch
from clara_jax.config import DataConfig
from clara_jax.data.collate import Layout, Vectors, collate, longest_of, measure
from clara_jax.data.examples import Example, ExampleMaker
from clara_jax.data.records import RecordSource
from clara_jax.errors import ClaraError


class UniqueDocuments:
    """The distinct documents of some records, numbered by first appearance.

    Holds places and digests, not texts; texts are read again from the records.

    Args:
      records: read once, in order.
    """

    def __init__(self, records: RecordSource):
        self._records = records
        numbers: dict[bytes, int] = {}
        self._places: list[tuple[int, int]] = []
        self._used: list[np.ndarray] = []
        for i in range(len(records)):
            row = []
            for j, text in enumerate(records[i].documents):
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                number = numbers.setdefault(digest, len(numbers))
                if number == len(self._places):
                    self._places.append((i, j))
                row.append(number)
            self._used.append(np.asarray(row, np.int32))
        self._last: tuple[int, tuple[str, ...]] = (-1, ())

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i, j = self._places[index]
        if self._last[0] != i:
            self._last = (i, self._records[i].documents)
        return self._last[1][j]

    def candidates(self, record: int) -> np.ndarray:
        """Return the numbers of a record's documents, in its order."""
        return self._used[record]

    @property
    def most_candidates(self) -> int:
        """The largest number of documents that a record has."""
        return max(map(len, self._used), default=0)


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


def make_batches(
    records: RecordSource,
    make: ExampleMaker,
    *,
    train: bool = True,
    epochs: int | None = None,
    documents: UniqueDocuments | None = None,
    vectors: Vectors | None = None,
    part: Part = WHOLE,
) -> Windows:
    """Make the batches of one stage.

    In training, records come in a new random order in every epoch (with
    ``data.shuffle``), and a window's batches in random order; a last batch that is not
    full is dropped. In evaluation, records come once, in order, and a last batch is
    filled up with empty rows. All of it depends on the config's seed alone.

    An iterator's ``get_state()`` gives a small JSON value, and ``set_state()`` goes on
    after the very batch that was returned last, on any number of processes. Where
    candidates come from a corpus, batches hold questions, prompts and labels, and
    `WindowIterator.draw` gives the right documents.

    Args:
      records: anything with a length and an index; see `open_records`.
      make: makes the stage's examples; its config says batch size, buckets and seed.
      train: whether to shuffle, repeat and drop.
      epochs: passes over the records in training; None goes on for ever.
      documents: numbers of all documents; needed with `vectors`.
      vectors: compressed documents by number; batches then carry vectors and no
        candidates' tokens.
      part: what this process makes of every batch.

    Returns:
      An iterable of numpy batches; each iterator over it begins anew.

    Raises:
      ClaraError: fewer records than a training batch. While iterating: a bad record,
        with file and line.
    """
    config, data = make.config, make.config.data
    batch_size = data.batch_size if train else data.eval_batch_size or data.batch_size
    if train and len(records) < batch_size:
        raise ClaraError(
            f"config field 'data.batch_size': {batch_size} is more than the "
            f"{len(records)} records"
        )
    if (vectors is None) != (documents is None):
        raise ClaraError("vectors and the documents they belong to go together")
    offers = "question" in make.fields and not make.corpus
    candidates = count_candidates(records, data, documents) if offers else 0
    reads, pad_id = make.stage.reads(config), make.tokenizer.pad_id
    layout = Layout.of(reads, config, candidates, pad_id)

    def example(index: int, draw: np.random.Generator) -> Example:
        numbers = None if documents is None else documents.candidates(int(index))
        return make(records[int(index)], draw if train else None, numbers)

    order = grain.MapDataset.range(len(records)).seed(config.seed)
    if train and data.shuffle:
        order = order.shuffle()
    examples = order.random_map(example)
    if train:
        examples = examples.repeat(epochs)
    sort = train and data.shuffle and layout.has_choice
    return Windows(
        examples,
        layout,
        batch_size,
        window=data.window if sort else 1,
        seed=config.seed,
        drop_remainder=train,
        workers=data.workers,
        vectors=vectors,
        part=part,
    )


def count_candidates(
    records: RecordSource,
    data: DataConfig,
    documents: UniqueDocuments | None = None,
) -> int:
    """Return C: what the config says, else the most documents that any record has."""
    if data.candidates:
        return data.candidates
    if documents is not None:
        return documents.most_candidates
    counts = (len(records[i].documents) for i in range(len(records)))
    return max(counts, default=0)


@dataclasses.dataclass(frozen=True)
class Windows:
    """A stream of batches; every iterator over it begins anew.

    Attributes:
      examples: by index; drawn in the order of their indices.
      window: batches whose examples are sorted together; 1 keeps the order.
      seed: of the order of a window's batches.
      workers: threads that make examples ahead; 0 makes them when they are needed.
    """

    examples: Any
    layout: Layout
    batch_size: int
    window: int
    seed: int
    drop_remainder: bool
    workers: int
    vectors: Vectors | None
    part: Part

    def __iter__(self) -> WindowIterator:
        return WindowIterator(self)

    @property
    def rows(self) -> Sequence[int]:
        """Rows of a batch that this process makes."""
        return range(self.batch_size) if self.part.rows is None else self.part.rows

    def indices(self, number: int) -> range:
        """Return the examples of a window, counted from 0."""
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
        examples = [
            self._kept.pop(i) if i in self._kept else self._ahead.get(i)
            for i in self._own(indices)
        ]
        batch = collate(
            examples, settings.layout, len(settings.rows), settings.vectors, lengths
        )
        return batch, examples

    def get_state(self) -> dict[str, Any]:
        """Return where the next batch stands, as a JSON value."""
        return {"window": self._number, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called, on any number of processes."""
        self._number, self._position = state["window"], state["position"]
        self._batches = self._open(self._number) if self._number >= 0 else []

    def _own(self, indices: Sequence[int]) -> list[int]:
        """This process's examples of a batch; a last batch may have too few."""
        return [indices[row] for row in self._settings.rows if row < len(indices)]

    def _open(self, number: int) -> list[tuple[Sequence[int], Any]]:
        """Batches of a window, as indices and the longest rows in them."""
        settings = self._settings
        indices, size = settings.indices(number), settings.batch_size
        self._kept = {}
        lengths, order = None, np.arange(len(indices))
        if settings.layout.has_choice and indices:
            lengths = self._measure(indices)
            if settings.window > 1:
                order = np.argsort(lengths[:, 0], kind="stable")
        found: list[tuple[Sequence[int], Any]] = []
        for start in range(0, len(order), size):
            some = order[start : start + size]
            longest = None if lengths is None else longest_of(lengths[some])
            found.append(([indices[i] for i in some], longest))
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
