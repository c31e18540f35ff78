"""A record becomes token rows: what the loss of a stage reads of it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clara_jax.clara import IGNORE, ROLES
from clara_jax.config import RunConfig
from clara_jax.data.records import Record, RecordSource, each, require_documents
from clara_jax.errors import ClaraError, RecordError
from clara_jax.text import ClaraTokenizer, Prompt

Row = np.ndarray
"""Token ids ``[T]`` int32, without padding."""


Draw = np.random.Generator
"""Where chance comes from."""


@dataclasses.dataclass(frozen=True)
class Reads:
    """Rows of a batch and the role that reads them.

    Shapes of batches, abstract batches and operation counts all follow from these.

    Attributes:
      field: of `Batch`: ``prompt``, ``documents``, ``question``, ``candidates``, or
        ``vectors``, candidates compressed beforehand, which no role reads.
      role: ``compressor``, ``reasoner``, ``generator`` or ``backbone``.
      per_row: documents of each example; None where it has a single row, 0 for as many
        as the records have.
      trained: whether gradients go through.
    """

    field: str
    role: str = ""
    per_row: int | None = None
    trained: bool = True

    def __post_init__(self) -> None:
        fields = ("prompt", "documents", "question", "candidates", "vectors")
        roles = ("", *ROLES, "backbone")
        if self.field not in fields or self.role not in roles:
            raise ValueError(
                f"Reads({self.field!r}, {self.role!r}): the field must be one of "
                f"{', '.join(fields)}, the role one of {', '.join(roles[1:])} or empty"
            )

    def length(self, config: RunConfig) -> int:
        """Return the longest row in tokens."""
        memory, data = config.memory, config.data
        if self.field == "prompt":
            return data.prompt_max_length
        if self.field == "question" and data.question_max_length:
            return memory.row_length(data.question_max_length)
        return memory.row_length(memory.doc_max_length)


class Dialogue(NamedTuple):
    """What the generator is asked, what it shall answer, and from what.

    Attributes:
      prompt: in which documents are slots.
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
      documents: at most J encoder rows.
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


def supervise(ids: Sequence[int], prompt_length: int, max_length: int) -> Row:
    """Return the labels of a prompt with its answer: `IGNORE` where the prompt is.

    Args:
      ids: prompt and answer, rendered together.
      prompt_length: tokens of the prompt rendered alone. It is a count, as in the
        original: where a template renders the open prompt longer than the common part,
        the first tokens of the answer are not supervised either.
      max_length: of the row, which is cut on the right.
    """
    labels = np.asarray(ids[:max_length], np.int32)
    labels[:prompt_length] = IGNORE
    return labels


class ExampleMaker:
    """Make the examples of one stage: what stages have in common in doing so.

    With ``data.too_long="cut"`` a long question loses its end, as in the original, and
    an answer that does not fit stays without labels, so that it weighs nothing in the
    loss. Documents are always cut silently: that is the method's own limit.

    Attributes:
      stage: whose examples; a `clara_jax.stages.Stage`.
      tokenizer: with the config's number of memory tokens.
      config: lengths and limits.
      fields: of a batch, that the stage reads.
      corpus: whether candidates come from a corpus. A record's documents are then not
        offered, and only serve to know the right ones.

    Raises:
      ClaraError: tokenizer and config differ in their memory tokens; in all methods, a
        record does not fit the stage or a limit (names the line).
    """

    def __init__(self, stage: Any, tokenizer: ClaraTokenizer, config: RunConfig):
        self.stage, self.tokenizer, self.config = stage, tokenizer, config
        self.fields = frozenset(read.field for read in stage.reads(config))
        self.corpus = config.candidates == "corpus"
        wanted = config.memory.num_memory
        if self.fields != {"prompt"} and tokenizer.num_memory != wanted:
            raise ClaraError(
                f"the tokenizer has {tokenizer.num_memory} memory tokens, but config "
                f"field 'memory' asks for {wanted}"
            )

    def __call__(
        self, record: Record, draw: Draw | None = None, candidate_ids: Row | None = None
    ) -> Example:
        """Make the example of one record.

        Args:
          record: of a kind that the stage can use.
          draw: chooses question and instruction; None takes the first of each.
          candidate_ids: stand for documents that are candidates, which are then not
            tokenised.
        """
        return self.stage.example(self, record, draw, candidate_ids)

    def misfit(self, record: Record) -> ClaraError:
        """Return the error of a record of a kind that the stage cannot use."""
        return RecordError(
            record.source,
            f"is of type {record.kind}, which stage {self.stage.name} cannot use",
        )

    def require_question(self, record: Record) -> None:
        """Raise `misfit` unless a record has questions; refuse one without answers."""
        if record.kind in ("text", "paraphrase"):
            raise self.misfit(record)
        self.require_answer(record)

    def require_answer(self, record: Record) -> None:
        """Refuse a question of a test set, whose answer is not known."""
        if record.kind == "qa" and not record.answers:
            raise RecordError(
                record.source,
                "has no answer, as in a test set, but losses need "
                "one; leave it to clara_jax.evaluate, which writes predictions",
            )

    def require_documents(self, record: Record) -> None:
        """Refuse a question without documents."""
        require_documents(record)

    def pair(self, record: Record, draw: Draw | None) -> tuple[str, str]:
        """Draw one of a record's questions, and return it with its answer."""
        self.require_answer(record)
        question, answer, _ = record.pair(pick(draw, len(record.questions)))
        return question, answer

    def slots(self, count: int) -> str:
        """Return the text of so many documents' slots in a prompt."""
        return self.tokenizer.slots(count, self.config.memory.separator)

    def chosen(self, record: Record) -> tuple[str, ...]:
        """Return at most J documents: positives before others, in their order."""
        self.require_documents(record)
        count, top_k = len(record.documents), self.config.selection.top_k
        if count <= top_k:
            return record.documents
        if not record.positives:
            raise RecordError(
                record.source,
                f"has {count} documents, more than selection.top_k "
                f"{top_k}, and does not say which hold the answer (pos_index)",
            )
        others = [i for i in range(count) if i not in record.positives]
        chosen = [*record.positives, *others][:top_k]
        return tuple(record.documents[i] for i in sorted(chosen))

    def documents(self, texts: Sequence[str]) -> tuple[Row, ...]:
        """Return encoder rows of documents, cut to ``memory.doc_max_length``."""
        limit = self.config.memory.doc_max_length
        rows = self.tokenizer.encode_documents(texts, limit)
        return tuple(np.asarray(row, np.int32) for row in rows)

    def question(self, record: Record, question: str) -> Row:
        """Return the encoder row of a question."""
        data = self.config.data
        limit = data.question_max_length or self.config.memory.doc_max_length
        if data.too_long == "error":
            length = self.tokenizer.document_length(question)
            if length > limit:
                raise RecordError(
                    record.source,
                    f"the question has {length} tokens, more than "
                    f"{limit}; raise data.question_max_length or set "
                    "data.too_long to cut",
                )
        return np.asarray(self.tokenizer.encode_document(question, limit), np.int32)

    def ranked(
        self, record: Record, question: str, candidate_ids: Row | None
    ) -> Example:
        """Return the rows of a question and its candidates, the record's documents."""
        if self.corpus:
            gold = tuple(record.documents[i] for i in record.positives)
            row = self.question(record, question)
            return Example(question=row, gold=gold, source=record.source)
        self.require_documents(record)
        limit = self.config.data.candidates
        if limit and len(record.documents) > limit:
            raise RecordError(
                record.source,
                f"has {len(record.documents)} candidate documents, "
                f"but data.candidates is {limit}; raise it",
            )
        positives = np.zeros(len(record.documents), bool)
        positives[list(record.positives)] = True
        tokenised = () if candidate_ids is not None else record.documents
        return Example(
            question=self.question(record, question),
            candidates=self.documents(tokenised),
            candidate_ids=candidate_ids,
            positives=positives,
            source=record.source,
        )

    def prompt(self, record: Record, said: Dialogue) -> tuple[Row, Row]:
        """Return the ids of a prompt with its answer, and their labels."""
        ids, count = self.tokenizer.encode_chat(said.prompt, said.answer)
        limit = self.config.data.prompt_max_length
        row = np.asarray(ids, np.int32)
        slots = np.flatnonzero(row >= self.tokenizer.text_vocab)
        if len(slots) and slots[-1] >= limit:
            raise RecordError(
                record.source,
                f"the documents' slots need {slots[-1] + 1} tokens, "
                f"more than data.prompt_max_length {limit}; raise it",
            )
        labels = supervise(ids, count, limit)
        if self.config.data.too_long == "error" and count >= limit:
            raise RecordError(
                record.source,
                f"the prompt has {count} tokens, which leaves no room "
                f"for an answer in data.prompt_max_length {limit}; raise it or set "
                "data.too_long to cut",
            )
        return row[:limit], labels


def check_records(
    records: RecordSource, maker: ExampleMaker, most: int = 100_000
) -> None:
    """Read records before training starts, so that bad ones are named at once.

    At most `most` are read, evenly spread over the files.

    Raises:
      ClaraError: the first bad records, with file and line.
    """
    step = max(1, -(-len(records) // most))
    check = functools.partial(maker.stage.check_record, maker)
    for _ in each(records, check, step):
        pass


def pick(draw: Draw | None, count: int) -> int:
    """Draw a number below `count`; 0 without a draw."""
    return 0 if draw is None or count < 2 else int(draw.integers(count))
