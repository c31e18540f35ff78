"""A record becomes token rows: what one stage's loss reads of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from clara_jax.clara.batches import IGNORE
from clara_jax.config import STAGES, DataConfig, MemoryConfig
from clara_jax.data.records import Record, RecordSource
from clara_jax.errors import ClaraError
from clara_jax.text import (
    PARAPHRASES,
    ClaraTokenizer,
    Prompt,
    answer_prompt,
    paraphrase_prompt,
    plain,
    scp_prompt,
    scp_target,
)

Row = np.ndarray
"""Token ids ``[T]`` int32, without padding."""


@runtime_checkable
class Draw(Protocol):
    """Where chance comes from; ``np.random.Generator`` is one."""

    def integers(self, low: int, /) -> int | np.integer:
        """A number from 0 to `low` - 1."""
        ...


class Dialogue(NamedTuple):
    """What the generator is asked, what it shall answer, and from what.

    Attributes:
      prompt: in which documents are slots.
      answer: the target.
      documents: what the slots stand for; in end_to_end, the candidates.
      question: the one that was drawn; empty in scp, where there may be many.
    """

    prompt: Prompt
    answer: str
    documents: tuple[str, ...]
    question: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """Unpadded rows of one record; fields as in `clara_jax.clara.batches.Batch`.

    Attributes:
      prompt, labels: ``[T]``.
      documents: at most J encoder rows.
      question: encoder row.
      candidates: at most C encoder rows; empty when `candidate_ids` stands for them.
      candidate_ids: numbers of the candidates among all documents.
      positives: ``[C']`` bool over the candidates that are there.
      gold: texts of the documents that hold the answer, where candidates come from a
        corpus.
      source: the record's ``file:line``.
    """

    prompt: Row | None = None
    labels: Row | None = None
    documents: tuple[Row, ...] = ()
    question: Row | None = None
    candidates: tuple[Row, ...] = ()
    candidate_ids: Row | None = None
    positives: np.ndarray | None = None
    gold: tuple[str, ...] = ()
    source: str = ""

    @property
    def num_tokens(self) -> int:
        """All tokens of the example: what the model's time goes by."""
        rows = [self.prompt, self.question, *self.documents, *self.candidates]
        return sum(len(row) for row in rows if row is not None)


def supervise(ids: Sequence[int], prompt_length: int, max_length: int) -> Row:
    """Labels of a prompt with its answer: the original's rule.

    Args:
      ids: prompt and answer, rendered together.
      prompt_length: tokens of the prompt rendered alone. It is a count: where a
        template renders the open prompt longer than the common part, the first tokens
        of the answer are not supervised either.
      max_length: the row is cut to this on the right.

    Returns:
      The ids after the first `prompt_length` of them, `IGNORE` before.
    """
    labels = np.asarray(ids[:max_length], np.int32)
    labels[:prompt_length] = IGNORE
    return labels


class ExampleMaker:
    """Turn records into examples of one stage.

    | stage | rows |
    |---|---|
    | lm | ``<bos>text<eos>``, all supervised; of question records, the conversation with its documents as text |
    | scp | one document; all its pairs, or the document under one of 13 instructions |
    | instruct | up to J documents, a question, its answer |
    | end_to_end | C candidates, the question twice (for reasoner and generator), its answer; from a corpus, no candidates |
    | rerank | C candidates, the question |
    | text | no document rows: up to J documents as text in the prompt, a question, its answer |
    | closed_book | the same without documents |

    Where a record has several questions and the stage takes one, one is drawn; so is
    the paraphrase instruction. instruct takes the positives first when a record has more
    than J documents, then others, in the record's order; without positives known such
    a record is an error.

    With ``data.too_long="cut"`` a long question loses its end, as in the original, and
    an answer that does not fit stays without labels, so that it weighs nothing in the
    loss. Documents are always cut silently: that is the method's own limit.

    Args:
      tokenizer: with the stage's number of memory tokens.
      stage: out of ``config.STAGES``.
      memory: document length and separator.
      data: prompt and question limits.
      top_k: J, slots of instruct and end_to_end.
      corpus: whether candidates come from a corpus (end_to_end). A record's documents
        are then not offered, and only serve to know the right ones.
    """  # noqa: E501

    def __init__(
        self,
        tokenizer: ClaraTokenizer,
        stage: str,
        memory: MemoryConfig,
        data: DataConfig,
        top_k: int = 1,
        corpus: bool = False,
    ):
        if stage not in STAGES:
            raise ClaraError(f"stage is '{stage}', but must be one of {STAGES}")
        if stage != "lm" and tokenizer.num_memory != memory.num_memory:
            raise ClaraError(
                f"the tokenizer has {tokenizer.num_memory} memory tokens, but "
                f"config field 'memory' asks for {memory.num_memory}"
            )
        self.tokenizer, self.stage = tokenizer, stage
        self.memory, self.data = memory, data
        self.top_k = 1 if stage == "scp" else top_k
        self.corpus = corpus and stage == "end_to_end"
        self.question_max_length = data.question_max_length or memory.doc_max_length

    def __call__(
        self,
        record: Record,
        draw: Draw | None = None,
        candidate_ids: np.ndarray | None = None,
    ) -> Example:
        """Make the example of one record.

        Args:
          record: of a kind that the stage can use.
          draw: chooses question and instruction; None takes the first of each.
          candidate_ids: numbers that stand for the record's documents (end_to_end,
            rerank), which are then not tokenised.

        Raises:
          ClaraError: the record does not fit the stage, or its limits; names the line.
        """
        if self.stage == "lm":
            return self._text(record, draw)
        if self.stage == "text":
            record = self._shortened(record)
        said = self.dialogue(record, draw)
        if self.stage == "rerank":
            return self._ranked(record, said.question, candidate_ids)
        prompt, labels = self._prompt_rows(record, said)
        if self.stage == "end_to_end":
            ranked = self._ranked(record, said.question, candidate_ids)
            return dataclasses.replace(ranked, prompt=prompt, labels=labels)
        documents = self._rows(said.documents)  # none where they stand in the prompt
        return Example(prompt, labels, documents, source=record.source)

    def check(self, record: Record) -> None:
        """Raise what making the example would, but for a prompt that is too long.

        Much faster than making it: only the question is tokenised.
        """
        if self.stage != "lm":
            said = self.dialogue(record)
            if self.stage in ("end_to_end", "rerank"):
                self._ranked(record, said.question, np.zeros(0, np.int32))

    def dialogue(self, record: Record, draw: Draw | None = None) -> Dialogue:
        """Say what the generator is asked, what it shall answer, and from what.

        Args:
          record: of a kind that the stage can use.
          draw: as for calling.

        Raises:
          ClaraError: the record does not fit the stage.
        """
        stage, documents = self.stage, record.documents
        if record.kind == "text" or (record.kind == "paraphrase" and stage != "scp"):
            raise ClaraError(
                f"{record.source}: is of type {record.kind}, which stage {stage} "
                "cannot use"
            )
        if stage == "scp":
            return self._scp(record, draw)
        if stage in ("text", "closed_book"):
            return self._in_full(record, draw)
        slots = self.top_k
        if stage == "instruct":
            documents = self._chosen(record)
            slots = len(documents)
        elif stage == "end_to_end" and len(documents) < slots and not self.corpus:
            raise ClaraError(
                f"{record.source}: has {len(documents)} candidate documents, fewer "
                f"than selection.top_k {slots}; lower it"
            )
        question, answer, _ = record.pair(_pick(draw, len(record.questions)))
        prompt = answer_prompt(self._slots(slots), question)
        return Dialogue(prompt, answer, documents, question)

    def _scp(self, record: Record, draw: Draw | None) -> Dialogue:
        if len(record.documents) != 1:
            raise ClaraError(
                f"{record.source}: has {len(record.documents)} documents, but stage "
                "scp takes one; use stage instruct"
            )
        background = self._slots(1)
        if record.kind == "paraphrase":
            instruction = _pick(draw, len(PARAPHRASES))
            prompt = paraphrase_prompt(background, instruction)
            return Dialogue(prompt, record.answers[0], record.documents)
        answers = record.answers[: len(record.questions)]
        target = scp_target(record.questions, answers)
        return Dialogue(scp_prompt(background), target, record.documents)

    def _in_full(self, record: Record, draw: Draw | None) -> Dialogue:
        """The question with its documents as text, or with none (closed_book)."""
        texts = self._chosen(record) if self.stage == "text" else ()
        background = "\n\n".join(map(plain, texts))
        question, answer, _ = record.pair(_pick(draw, len(record.questions)))
        return Dialogue(answer_prompt(background, question), answer, (), question)

    def _shortened(self, record: Record) -> Record:
        """A record of the chosen documents, as far as the compressor would read."""
        limit = self.memory.doc_max_length
        texts = tuple(self.tokenizer.shorten(t, limit) for t in self._chosen(record))
        return dataclasses.replace(record, documents=texts, positives=())

    def _text(self, record: Record, draw: Draw | None) -> Example:
        tokenizer = self.tokenizer
        text = "\n\n".join(record.documents)
        if record.kind == "qa":
            question, answer, _ = record.pair(_pick(draw, len(record.questions)))
            ids, _ = tokenizer.encode_chat(answer_prompt(text, question), answer)
        else:
            ids = tokenizer.encode(plain(text))
            if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
                ids = [tokenizer.bos_id, *ids]
            if ids[-1:] != [tokenizer.eos_id]:
                ids = [*ids, tokenizer.eos_id]
        row = np.asarray(ids[: self.data.prompt_max_length], np.int32)
        return Example(prompt=row, labels=row, source=record.source)

    def _ranked(
        self, record: Record, question: str, candidate_ids: np.ndarray | None
    ) -> Example:
        if self.corpus:
            gold = tuple(record.documents[i] for i in record.positives)
            row = self._question_row(record, question)
            return Example(question=row, gold=gold, source=record.source)
        limit = self.data.candidates
        if limit and len(record.documents) > limit:
            raise ClaraError(
                f"{record.source}: has {len(record.documents)} candidate documents, "
                f"but data.candidates is {limit}; raise it"
            )
        positives = np.zeros(len(record.documents), bool)
        positives[list(record.positives)] = True
        tokenised = () if candidate_ids is not None else record.documents
        return Example(
            question=self._question_row(record, question),
            candidates=self._rows(tokenised),
            candidate_ids=candidate_ids,
            positives=positives,
            source=record.source,
        )

    def _question_row(self, record: Record, question: str) -> Row:
        limit = self.question_max_length
        if self.data.too_long == "error":
            length = self.tokenizer.document_length(question)
            if length > limit:
                raise ClaraError(
                    f"{record.source}: the question has {length} tokens, more than "
                    f"{limit}; raise data.question_max_length or set "
                    "data.too_long to cut"
                )
        return np.asarray(self.tokenizer.encode_document(question, limit), np.int32)

    def _slots(self, count: int) -> str:
        return self.tokenizer.slots(count, self.memory.separator)

    def _rows(self, documents: Sequence[str]) -> tuple[Row, ...]:
        rows = self.tokenizer.encode_documents(documents, self.memory.doc_max_length)
        return tuple(np.asarray(row, np.int32) for row in rows)

    def _chosen(self, record: Record) -> tuple[str, ...]:
        count = len(record.documents)
        if count <= self.top_k:
            return record.documents
        if not record.positives:
            raise ClaraError(
                f"{record.source}: has {count} documents, more than selection.top_k "
                f"{self.top_k}, and does not say which hold the answer (pos_index)"
            )
        others = [i for i in range(count) if i not in record.positives]
        chosen = [*record.positives, *others][: self.top_k]
        return tuple(record.documents[i] for i in sorted(chosen))

    def _prompt_rows(self, record: Record, said: Dialogue) -> tuple[Row, Row]:
        ids, count = self.tokenizer.encode_chat(said.prompt, said.answer)
        limit = self.data.prompt_max_length
        row = np.asarray(ids, np.int32)
        slots = np.flatnonzero(row >= self.tokenizer.text_vocab)
        if len(slots) and slots[-1] >= limit:
            raise ClaraError(
                f"{record.source}: the documents' slots need {slots[-1] + 1} tokens, "
                f"more than data.prompt_max_length {limit}; raise it"
            )
        labels = supervise(ids, count, limit)
        if self.data.too_long == "error" and count >= limit:
            raise ClaraError(
                f"{record.source}: the prompt has {count} tokens, which leaves no room "
                f"for an answer in data.prompt_max_length {limit}; raise it or set "
                "data.too_long to cut"
            )
        return row[:limit], labels


def check_records(
    records: RecordSource, maker: ExampleMaker, most: int = 100_000
) -> None:
    """Read records before training starts, so that bad ones are named at once.

    Args:
      records: what training will read.
      maker: of the stage's examples.
      most: read so many at most, evenly spread over the files.

    Raises:
      ClaraError: the first bad record, with file and line.
    """
    step = max(1, -(-len(records) // most))
    for i in range(0, len(records), step):
        maker.check(records[i])


def _pick(draw: Draw | None, count: int) -> int:
    return 0 if draw is None or count < 2 else int(draw.integers(count))
