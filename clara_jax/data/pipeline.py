"""Records to batches: shuffled, bucketed by length, resumable at any batch (Grain)."""

from __future__ import annotations

import grain
import numpy as np

from clara_jax.config import DataConfig
from clara_jax.data.collate import Layout, Vectors
from clara_jax.data.examples import Example, ExampleMaker
from clara_jax.data.records import RecordSource
from clara_jax.data.unique import UniqueDocuments
from clara_jax.data.windows import WHOLE, Part, Windows
from clara_jax.errors import ClaraError


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
    ``data.shuffle``), ``data.window`` batches at a time are sorted by length and cut,
    and the window's batches come in random order; a last batch that is not full is
    dropped. In evaluation, records come once, in order, and a last batch is filled up
    with empty rows. All of it depends on the config's seed alone, so a global batch is
    the same for any number of processes: each makes its own rows of it, and reads no
    more than those and its share of the lengths by which a window is sorted.

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
    """C: what the config says, else the most documents that any record has."""
    if data.candidates:
        return data.candidates
    if documents is not None:
        return documents.most_candidates
    counts = (len(records[i].documents) for i in range(len(records)))
    return max(counts, default=0)
