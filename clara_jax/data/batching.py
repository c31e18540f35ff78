"""Records to batches: shuffled, bucketed by length, resumable at any batch (Grain).

In training, the examples of a window, ``data.window`` batches, are sorted by length and
cut into batches. These depend on the examples' lengths alone: each process measures its
share of them, all exchange what they found, and each then makes its own rows of every
batch. So a global batch is the same for any number of processes.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np

from clara_jax.clara.batches import Batch
from clara_jax.data.collating import Layout, Vectors, collate, longest_of, measure
from clara_jax.data.examples import Example, ExampleMaker
from clara_jax.data.records import RecordSource
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError


class UniqueDocuments:
    """The distinct documents of some records, numbered by first appearance.

    Holds places and digests, not texts; texts are read again from the records, which
    are first read once, in order.
    """

    def __init__(self, records: RecordSource):
        numbers: dict[bytes, int] = {}
        self._places: list[tuple[int, int]] = []
        self._used: list[np.ndarray] = []
        for i in range(len(records)):
            row = []
            for j, text in enumerate(records[i].documents):
                number = numbers.setdefault(text_digest(text), len(numbers))
                if number == len(self._places):
                    self._places.append((i, j))
                row.append(number)
            self._used.append(np.asarray(row, np.int32))
        self._documents = functools.lru_cache(1)(lambda i: records[i].documents)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i, j = self._places[index]
        return self._documents(i)[j]

    def candidates(self, record: int) -> np.ndarray:
        """Return the numbers of a record's documents, in its order."""
        return self._used[record]


@dataclasses.dataclass(frozen=True)
class Part:
    """What process `index` of `count` does of every batch.

    Attributes:
      rows: the rows of a batch that it makes, ascending; None makes all.
      gather: stacks the arrays ``[...]`` of all processes to ``[count, ...]``.
    """

    rows: tuple[int, ...] | None = None
    index: int = 0
    count: int = 1
    gather: Callable[[np.ndarray], np.ndarray] = lambda x: x[None]


def make_batches(
    records: RecordSource,
    make: ExampleMaker,
    *,
    train: bool = True,
    epochs: int | None = None,
    documents: UniqueDocuments | None = None,
    vectors: Vectors | None = None,
    part: Part = Part(),
) -> "Windows":
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
      records: see `open_records`.
      make: makes the stage's examples; its config says batch size, buckets and seed.
      train: whether to shuffle, repeat and drop.
      epochs: passes over the records in training; None goes on for ever.
      documents: numbers of all documents; needed with `vectors`.
      vectors: compressed documents by number, in place of candidates' tokens.
      part: what this process makes of every batch.

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

    def count(i: int) -> int:
        known = records[i].documents if documents is None else documents.candidates(i)
        return len(known)

    candidates = 0
    if "question" in make.fields and not make.corpus:
        counts = map(count, range(len(records)))
        candidates = data.candidates or max(counts, default=0)
    reads = make.stage.reads(config)
    layout = Layout.of(reads, config, candidates, make.tokenizer.pad_id)

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
        rows=range(batch_size) if part.rows is None else part.rows,
    )


@dataclasses.dataclass(frozen=True)
class Windows:
    """A stream of numpy batches; every iterator over it begins anew.

    Attributes:
      examples: by index; drawn in the order of their indices.
      window: batches whose examples are sorted together; 1 keeps the order.
      seed: of the order of a window's batches.
      workers: threads that make examples ahead; 0 makes them when they are needed.
      rows: of a batch, that this process makes.
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
    rows: Sequence[int]

    def __iter__(self) -> "WindowIterator":
        return WindowIterator(self)

    def indices(self, number: int) -> range:
        """Return the examples of a window, counted from 0."""
        size = self.batch_size * self.window
        found = range(number * size, min((number + 1) * size, len(self.examples)))
        if self.drop_remainder:
            found = found[: len(found) // self.batch_size * self.batch_size]
        return found

    def own(self, batch: Sequence[int]) -> list[int]:
        """Return this process's examples of a batch; a last batch may have too few."""
        return [batch[row] for row in self.rows if row < len(batch)]

    def share(self, number: int) -> Sequence[int]:
        """Return the examples of a window that this process makes first.

        They are those that it measures; where nothing is, a window is one batch.
        """
        indices = self.indices(number)
        if self.layout.has_choice:
            return indices[self.part.index :: self.part.count]
        return self.own(indices)

    def cut(self, number: int, lengths: np.ndarray) -> list["_Cut"]:
        """Cut a window into batches, by what was measured of its examples."""
        indices = self.indices(number)
        if not indices:
            return []
        order = np.arange(len(indices))
        if self.window > 1:
            order = np.argsort(lengths[:, 0], kind="stable")
        parts = np.split(order, range(self.batch_size, len(order), self.batch_size))
        found = [([indices[i] for i in p], longest_of(lengths[p])) for p in parts]
        if self.window > 1:
            draw = np.random.default_rng((self.seed, number))
            found = [found[i] for i in draw.permutation(len(found))]
        return found


_Cut = tuple[list[int], tuple[int, ...]]
"""The examples of a batch, and the longest rows in it."""


class WindowIterator(Iterator[Batch]):
    """Batches, and the place in their stream: a window's number and a batch in it."""

    def __init__(self, settings: Windows):
        self._settings = settings
        self._pool = None
        if settings.workers:
            self._pool = futures.ThreadPoolExecutor(settings.workers, "examples")
        self.set_state({"window": -1, "position": 0})

    def __next__(self) -> Batch:
        return self.draw()[0]

    def draw(self) -> tuple[Batch, list[Example]]:
        """Return the next batch and the examples of this process's rows of it."""
        settings = self._settings
        if self._position >= len(self._batches):
            if not settings.indices(self._number + 1):
                raise StopIteration
            self._number, self._position = self._number + 1, 0
            self._open()
        indices, lengths = self._batches[self._position]
        self._position += 1
        examples = [
            self._measured.pop(i) if i in self._measured else next(self._others)
            for i in settings.own(indices)
        ]
        size, layout = len(settings.rows), settings.layout
        return collate(examples, layout, size, settings.vectors, lengths), examples

    def get_state(self) -> dict[str, Any]:
        """Return where the next batch stands, as a JSON value."""
        return {"window": self._number, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called, on any number of processes."""
        self._number, self._position = state["window"], state["position"]
        windows = itertools.count(max(self._number, 0))
        shares = itertools.takewhile(len, map(self._settings.share, windows))
        self._shares = self._make(itertools.chain.from_iterable(shares))
        self._batches: list[_Cut] = []
        if self._number >= 0:
            self._open()

    def _open(self) -> None:
        """Measure a share of the window, cut it, and make own examples from here on."""
        settings, part = self._settings, self._settings.part
        share, count = settings.share(self._number), len(settings.indices(self._number))
        self._measured = dict(zip(share, self._shares, strict=False))
        measured = frozenset(self._measured)
        # Zeros where nothing is measured: then there is one length to choose.
        lengths = np.zeros((count, 4), np.int32)
        if settings.layout.has_choice:
            table = np.zeros((-(-count // part.count), 4), np.int32)
            for row, index in enumerate(share):
                table[row] = measure(self._measured[index])
            gathered = np.asarray(part.gather(table))
            lengths = np.swapaxes(gathered, 0, 1).reshape(-1, 4)[:count]
        self._batches = settings.cut(self._number, lengths)
        self._others = self._make(
            index
            for batch, _ in self._batches[self._position :]
            for index in settings.own(batch)
            if index not in measured
        )

    def _make(self, indices: Iterable[int]) -> Iterator[Example]:
        """Make examples in this order, by threads a little ahead."""
        make, pool = self._settings.examples.__getitem__, self._pool
        if pool is None:
            yield from map(make, indices)
            return
        coming = (pool.submit(make, index) for index in indices)
        ahead = max(2 * len(self._settings.rows), 16)
        begun = collections.deque(itertools.islice(coming, ahead))
        while begun:
            yield begun.popleft().result()
            begun.extend(itertools.islice(coming, 1))
