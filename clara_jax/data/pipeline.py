"""Records to batches: shuffled, bucketed by length, resumable at any batch (Grain)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from clara_jax.clara.batches import Batch
from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data.collate import Layout, Vectors, collate
from clara_jax.data.examples import Example, ExampleMaker
from clara_jax.data.records import RecordSource
from clara_jax.data.unique import UniqueDocuments
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer


def make_batches(
    records: RecordSource,
    tokenizer: ClaraTokenizer,
    stage: str,
    memory: MemoryConfig,
    data: DataConfig,
    *,
    top_k: int = 1,
    train: bool = True,
    seed: int = 0,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    documents: UniqueDocuments | None = None,
    vectors: Vectors | None = None,
) -> grain.IterDataset[Batch]:
    """Make the batches of one stage.

    In training, records come in a new random order in every epoch (with
    ``data.shuffle``), ``data.window`` batches at a time are sorted by length and cut,
    and the window's batches come in random order; a last batch that is not full is
    dropped. In evaluation, records come once, in order, and a last batch is filled up
    with empty rows. All of it depends on `seed` alone, so a global batch is the same
    for any number of processes: each process makes its own rows of it.

    The iterator is Grain's: ``get_state()`` gives a small JSON value, and
    ``set_state()`` goes on after the very batch that was returned last.

    Args:
      records: anything with a length and an index; see `open_records`.
      tokenizer: with the stage's memory tokens.
      stage: out of ``config.STAGES``.
      memory: document length, compression rate.
      data: batch size, buckets, limits.
      top_k: J.
      train: whether to shuffle, repeat and drop.
      seed: of order, questions drawn and paraphrase instructions.
      epochs: passes over the records in training; None goes on for ever.
      process_index, process_count: which rows of each batch to make.
      documents: numbers of all documents; needed with `vectors`.
      vectors: compressed documents by number (end_to_end, rerank); batches then carry
        vectors and no candidates' tokens.

    Returns:
      A dataset of numpy batches.

    Raises:
      ClaraError: fewer records than a training batch, a batch size that the processes
        cannot share. While iterating: a bad record, with file and line.
    """
    batch_size = data.batch_size if train else data.eval_batch_size or data.batch_size
    if batch_size % process_count:
        raise ClaraError(
            f"config field 'data.batch_size': {batch_size} is not divisible by the "
            f"{process_count} processes"
        )
    if train and len(records) < batch_size:
        raise ClaraError(
            f"config field 'data.batch_size': {batch_size} is more than the "
            f"{len(records)} records"
        )
    if (vectors is None) != (documents is None):
        raise ClaraError("vectors and the documents they belong to go together")
    ranks = stage in ("end_to_end", "rerank")
    layout = Layout.of(
        stage,
        memory,
        data,
        top_k=top_k,
        candidates=count_candidates(records, data, documents) if ranks else 0,
        pad_id=tokenizer.pad_id,
    )
    maker = ExampleMaker(tokenizer, stage, memory, data, top_k)

    def example(index: int, draw: np.random.Generator) -> Example:
        numbers = None if documents is None else documents.candidates(int(index))
        return maker(records[int(index)], draw if train else None, numbers)

    share = batch_size // process_count
    rows = slice(process_index * share, (process_index + 1) * share)

    def batch(examples: Sequence[Example]) -> Batch:
        return collate(examples, layout, batch_size, rows, vectors)

    order = grain.MapDataset.range(len(records)).seed(seed)
    if train and data.shuffle:
        order = order.shuffle()
    examples = order.random_map(example)
    if train:
        examples = examples.repeat(epochs)
    sort = train and data.shuffle and layout.has_choice
    options = grain.ReadOptions(
        num_threads=data.workers, prefetch_buffer_size=max(2 * batch_size, 16)
    )
    return Windows(
        examples.to_iter_dataset(options),
        batch,
        batch_size=batch_size,
        window=data.window if sort else 1,
        seed=seed,
        drop_remainder=train,
    )


def count_candidates(
    records: RecordSource,
    data: DataConfig,
    documents: UniqueDocuments | None = None,
) -> int:
    """C: what the config says, else the most documents that any record has."""
    if data.candidates:
        return data.candidates
    if documents is not None:
        return documents.most_candidates
    counts = (len(records[i].documents) for i in range(len(records)))
    return max(counts, default=0)


class Windows(grain.IterDataset[Batch]):
    """Cut a stream of examples into batches of similar length.

    Args:
      parent: examples.
      collate: makes a batch of at most `batch_size` examples.
      batch_size: examples a batch.
      window: batches whose examples are sorted together; 1 keeps the order.
      seed: of the order of a window's batches.
      drop_remainder: leave out a last batch that is not full.
    """

    def __init__(
        self,
        parent: grain.IterDataset[Example],
        collate: Callable[[Sequence[Example]], Batch],
        *,
        batch_size: int,
        window: int,
        seed: int,
        drop_remainder: bool,
    ):
        super().__init__(parent)
        self.collate = collate
        self.batch_size, self.window = batch_size, window
        self.order_seed, self.drop_remainder = seed, drop_remainder

    def __iter__(self) -> WindowIterator:
        return WindowIterator(iter(self._parent), self)


class WindowIterator(grain.DatasetIterator[Batch]):
    """Batches, and the place in their stream.

    The state is that of the examples before the current window, the window's number,
    and how many of its batches are gone; the window itself is made again.
    """

    def __init__(self, parent: grain.DatasetIterator[Example], settings: Windows):
        super().__init__(parent)
        self._settings = settings
        self._start = parent.get_state()
        self._number = -1
        self._position = 0
        self._batches: list[list[Example]] = []

    def __next__(self) -> Batch:
        if self._position >= len(self._batches):
            start = self._parent.get_state()
            batches = self._read(self._number + 1)
            if not batches:
                raise StopIteration
            self._start, self._batches = start, batches
            self._number, self._position = self._number + 1, 0
        batch = self._settings.collate(self._batches[self._position])
        self._position += 1
        return batch

    def _read(self, number: int) -> list[list[Example]]:
        settings = self._settings
        size = settings.batch_size
        examples: list[Example] = []
        while len(examples) < size * settings.window:
            try:
                examples.append(next(self._parent))
            except StopIteration:
                break
        if settings.drop_remainder:
            del examples[len(examples) // size * size :]
        if settings.window > 1:
            examples.sort(key=lambda example: example.num_tokens)
        batches = [examples[i : i + size] for i in range(0, len(examples), size)]
        if settings.window > 1:
            order = np.random.default_rng((settings.order_seed, number))
            batches = [batches[i] for i in order.permutation(len(batches))]
        return batches

    def get_state(self) -> dict[str, Any]:
        """Where the next batch stands, as a JSON value."""
        return {
            "examples": self._start,
            "window": self._number,
            "position": self._position,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""
        self._parent.set_state(state["examples"])
        self._start = state["examples"]
        self._number, self._position = state["window"], state["position"]
        self._batches = self._read(self._number) if self._number >= 0 else []
