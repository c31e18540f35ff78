"""Examples to arrays: rows padded to the smallest bucket that holds them all."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_jax.clara.batches import IGNORE, Batch, Tokens, pad_rows
from clara_jax.config import RunConfig
from clara_jax.data.examples import Example, Reads, Row
from clara_jax.errors import RecordError

Vectors = np.ndarray | Callable[[np.ndarray], np.ndarray]
"""Compressed documents by number: an array or memory map ``[U, M, D]``, or a function
from numbers ``[N]`` to ``[N, M, D]``."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shapes that batches may take.

    Attributes:
      documents, questions, prompts: padded lengths, ascending; the last holds any row.
      slots, candidates: J and C, documents of an example; 0 where a stage has none.
      pad_id: fills what no mask shows.
    """

    documents: tuple[int, ...] = ()
    questions: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    slots: int = 0
    candidates: int = 0
    pad_id: int = 0

    @classmethod
    def of(
        cls, reads: Sequence[Reads], config: RunConfig, candidates: int, pad_id: int
    ) -> "Layout":
        """Return the layout of a stage; buckets longer than any row are left out."""
        longest = {read.field: read.length(config) for read in reads}
        slots = {read.field: read.per_row or 0 for read in reads}.get("documents", 0)
        document = longest.get("documents")
        if candidates:
            document = longest.get("candidates", longest.get("vectors"))

        def buckets(wanted: tuple[int, ...], most: int | None) -> tuple[int, ...]:
            return () if most is None else (*(n for n in wanted if n < most), most)

        return cls(
            documents=buckets(config.data.doc_buckets, document),
            questions=buckets(config.data.doc_buckets, longest.get("question")),
            prompts=buckets(config.data.prompt_buckets, longest.get("prompt")),
            slots=slots,
            candidates=candidates,
            pad_id=pad_id,
        )

    @property
    def has_choice(self) -> bool:
        """Whether batches can differ in length at all."""
        return max(len(self.documents), len(self.questions), len(self.prompts)) > 1


def collate(
    examples: Sequence[Example],
    layout: Layout,
    batch_size: int,
    vectors: Vectors | None = None,
    lengths: tuple[int, ...] | None = None,
) -> Batch:
    """Pad examples to one batch on the right, or to a process's rows of one.

    Args:
      examples: at most `batch_size` of one stage; missing ones become empty rows, whose
        labels are `IGNORE` and whose masks are False.
      layout: every field takes the smallest bucket that holds its longest row.
      batch_size: B, or the rows of this process.
      vectors: compressed documents, in place of candidates' tokens.
      lengths: of `longest_of` the whole batch, if these are not all of its examples.

    Raises:
      ClaraError: a record has more than C candidates.
    """
    rows = [*examples, *[Example()] * (batch_size - len(examples))]
    document, question, prompt = lengths or longest_of(list(map(measure, rows)))
    fields: dict[str, Any] = {}
    if layout.prompts:
        length = _fit(prompt, layout.prompts)
        prompts, labels = [e.prompt for e in rows], [e.labels for e in rows]
        fields["prompt"] = pad_rows(prompts, layout.pad_id, batch_size, length)
        fields["labels"] = pad_rows(labels, IGNORE, batch_size, length).ids
    if layout.questions:
        length = _fit(question, layout.questions)
        questions = [e.question for e in rows]
        fields["question"] = pad_rows(questions, layout.pad_id, batch_size, length)
    if layout.slots:
        texts = [e.documents for e in rows]
        fields["documents"] = _grid(texts, layout.slots, document, layout)
    if layout.candidates:
        fields |= _candidates(rows, document, layout, vectors)
    return Batch(**fields)


def measure(example: Example) -> tuple[int, int, int, int]:
    """Return an example's tokens; of its longest document, its question, its prompt."""
    documents = [len(row) for row in (*example.documents, *example.candidates)]
    question, prompt = len(_row(example.question)), len(_row(example.prompt))
    total = sum(documents) + question + prompt
    return total, max(documents, default=0), question, prompt


def longest_of(measured: Any) -> tuple[int, ...]:
    """Return the longest document, question and prompt among what `measure` found."""
    return tuple(int(n) for n in np.max(measured, axis=0)[1:])


def _candidates(
    rows: Sequence[Example], longest: int, layout: Layout, vectors: Vectors | None
) -> dict[str, Any]:
    width = layout.candidates
    for example in rows:
        if (count := len(_row(example.positives))) > width:
            raise RecordError(
                example.source,
                f"has {count} candidate documents, but "
                f"data.candidates is {width}; raise it",
            )
    marked = pad_rows([e.positives for e in rows], 0, len(rows), width)
    fields: dict[str, Any] = {"candidate_mask": marked.mask}
    fields["positives"] = marked.ids.astype(bool)
    if vectors is None:
        texts = [e.candidates for e in rows]
        return {**fields, "candidates": _grid(texts, width, longest, layout)}
    numbers = np.concatenate([_row(e.candidate_ids) for e in rows]).astype(np.int64)
    found = np.asarray(vectors(numbers) if callable(vectors) else vectors[numbers])
    table = np.zeros((len(rows), width, *found.shape[1:]), found.dtype)
    table[marked.mask] = found
    return {**fields, "vectors": table}


def _grid(
    rows: Sequence[tuple[Row, ...]], width: int, longest: int, layout: Layout
) -> Tokens:
    """Pad ragged rows to ``[B, width, S]``; absent rows get an empty mask."""
    length = _fit(longest, layout.documents)
    flat = [text for row in rows for text in (*row, *[None] * (width - len(row)))]
    tokens = pad_rows(flat, layout.pad_id, len(flat), length)
    shape = (len(rows), width, length)
    return Tokens(tokens.ids.reshape(shape), tokens.mask.reshape(shape), True)


def _row(row: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, np.int32) if row is None else row


def _fit(longest: int, buckets: tuple[int, ...]) -> int:
    return next(bucket for bucket in buckets if bucket >= longest)
