"""One record of any data set, and how our own format is read and written."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from clara_jax.commands import note
from clara_jax.data.fields import Fields, passage
from clara_jax.documents import is_unicode
from clara_jax.errors import ClaraError, RecordError

KINDS = ("qa", "paraphrase", "text")
CLARA_FIELDS = (
    "docs question answer answers data_type pos_index gold_answer id _id missing "
    "answerable"
)
_NEEDED = "docs data_type answer answers pos_index gold_answer"
"""Fields whose loss would change what a record means."""
NO_ANSWER = "noanswer"
"""What is to be answered where the documents hold no answer; HotpotQA's word."""
UNANSWERABLE = (NO_ANSWER, "")
"""What counts as right then."""
MOST_FAULTS = 20
"""Bad records that one error names at most."""
_AHEAD = 100_000
"""Records that are looked at after a bad one, at most."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Documents with what is asked about them.

    Attributes:
      documents: never blank. A question may have none, where they are to be found in a
        corpus; `require_documents` refuses
        it elsewhere.
      questions: as many as `answers`, or one question with several accepted answers;
        empty for kinds ``paraphrase`` and ``text``.
      answers: targets; of a paraphrase, the text to give back. Empty, as `gold` then
        is, where they are not known: in a test set. No loss reads such a record.
      kind: one of `KINDS`; ``text`` is documents and nothing else.
      positives: indices of the documents that hold the answer; empty when unknown.
      gold: answers that count as right in evaluation, the first being the main one.
      accepted: the same of each of several questions; empty if targets are all of them.
      source: where it was read, ``file:line``.
      missing: number of documents that hold the answer and are not among `documents`.
      answerable: whether the documents hold an answer. If not, `NO_ANSWER` is the
        target and counts as right, as does to say nothing, whatever else is given.
      id: the question's name in its data set, for files of a leaderboard.
      left_out: number of blank documents that its file has and `documents` has not.
      places: what its file numbers the `documents` with; empty for 0, 1, 2 and so on.
    """

    documents: tuple[str, ...]
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    kind: str = "qa"
    positives: tuple[int, ...] = ()
    gold: tuple[str, ...] = ()
    source: str = ""
    missing: int = 0
    answerable: bool = True
    id: str = ""
    accepted: tuple[tuple[str, ...], ...] = ()
    left_out: int = dataclasses.field(default=0, compare=False)
    places: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.kind == "qa" and not self.answerable:
            targets = (NO_ANSWER,) * len(self.questions)
            object.__setattr__(self, "answers", targets)
            object.__setattr__(self, "gold", UNANSWERABLE)
            object.__setattr__(self, "accepted", ())
        if fault := self._fault():
            raise RecordError(self.source, fault)

    def _fault(self) -> str:
        count, questions = len(self.documents), len(self.questions)
        if not count and self.kind != "qa":
            return "has no documents"
        for i, text in enumerate(self.documents):
            if not text.strip():
                return f"document {i} is empty or blank"
        texts = (*self.documents, *self.questions, *self.answers, *self.gold, self.id)
        if not all(map(is_unicode, itertools.chain(texts, *self.accepted))):
            return "holds half of a surrogate pair, which is not text"
        if self.kind != "qa":
            return ""
        if not questions or not all(q.strip() for q in self.questions):
            return "a question is empty or blank"
        if self.missing < 0:
            return f"has {self.missing} missing documents, but must have 0 or more"
        if self.gold and not self.answers:
            return "has answers that count as right, but no target"
        if self.answers and 1 < questions != len(self.answers):
            return f"has {questions} questions, but {len(self.answers)} answers"
        for i in self.positives:
            if not 0 <= i < count:
                return _outside(i, count)
        return ""

    def pair(self, index: int = 0) -> tuple[str, str, tuple[str, ...]]:
        """Return question `index`, its target, and the answers that count as right.

        Where answers are not known, the target is empty and none counts as right.
        """
        question = self.questions[index] if self.questions else ""
        if not self.answers:
            return question, "", ()
        answer = self.answers[index]
        if len(self.questions) > 1 and self.answerable:
            return (
                question,
                answer,
                self.accepted[index] if self.accepted else (answer,),
            )
        return question, answer, self.gold or self.answers

    def question_id(self, index: int) -> str:
        """Return the `id` of question `index`: of several, with its place in them."""
        several = self.id and len(self.questions) > 1
        return f"{self.id}_{index}" if several else self.id


@runtime_checkable
class RecordSource(Protocol):
    """Records by number: a list of them, or what `open_records` returns.

    It is not a ``Sequence``, so that checking its type never reads a record.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Record: ...


Reader = Callable[[Any, str], Record]
"""Makes a record of a format's values and the place (``file:line``) of them."""


def require_documents(record: Record) -> None:
    """Refuse a record without documents, where some are needed."""
    if not record.documents:
        raise RecordError(
            record.source,
            "has no documents; name their field with --fields "
            "documents=NAME (in a config, data.fields), or find some with `python -m "
            "clara_jax.data candidates --records FILE --corpus PATH --out FILE`",
        )


def each(
    records: RecordSource, check: Callable[[Record], None] | None = None, step: int = 1
) -> Iterator[Record]:
    """Yield records, every `step`-th of them, and note how much of them is left out.

    Raises:
      ClaraError: when the first bad record is reached, or one that `check` refuses;
        names it and those that follow, `MOST_FAULTS` at most.
    """

    def read(index: int) -> Record:
        record = records[index]
        if check is not None:
            check(record)
        return record

    blanks = touched = 0
    places = range(0, len(records), step)
    try:
        for number, index in enumerate(places):
            try:
                record = read(index)
            except ClaraError as error:
                raise all_faults(read, places[number + 1 :], error) from error
            blanks, touched = blanks + record.left_out, touched + (record.left_out > 0)
            yield record
    finally:
        if blanks:
            note(f"{blanks} blank documents, of {touched} records, are left out")


def all_faults(
    read: Callable[[int], Record], places: Sequence[int], error: ClaraError
) -> ClaraError:
    """Return the error of several bad records, of which the first is known.

    Each kind of fault is a line, with where it is found.

    Args:
      read: returns or checks a record; raises if it is bad.
      places: of the records after it.
      error: of the first.
    """
    count, faults = 1, {}
    _add_fault(faults, error)
    for index in places[:_AHEAD]:
        if count == MOST_FAULTS:
            break
        try:
            read(index)
        except ClaraError as other:
            _add_fault(faults, other)
            count += 1
    if count == 1:
        return error
    least = "at least " * (count == MOST_FAULTS or len(places) > _AHEAD)
    lines = []
    for fault, where in faults.items():
        first, *others = where or [""]
        more = f" (likewise {', '.join(others)})" if others else ""
        lines.append(f"{first}{more}: {fault}" if first else fault)
    return ClaraError("\n".join((f"{least}{count} records are bad", *lines)))


def _add_fault(faults: dict[str, list[str]], error: ClaraError) -> None:
    """Put a record's error among those of others: the fault, and its places.

    Later places in one file are their numbers alone.
    """
    if not isinstance(error, RecordError):
        faults[str(error)] = []
        return
    known = faults.setdefault(error.fault, [])
    file = error.place.rstrip("0123456789")
    same = bool(known) and known[0].startswith(file)
    known.append(error.place[len(file) :] if same else error.place)


def documents_of(
    fields: Fields, texts: Sequence[str], positives: Sequence[int], missing: int = 0
) -> dict[str, Any]:
    """Return the fields of a `Record` that its documents give, without blank ones.

    A blank document that is said to hold the answer is one that is missing.

    Raises:
      ClaraError: all are blank, or a positive is none of them.
    """
    kept = [i for i, text in enumerate(texts) if text.strip()]
    if texts and not kept:
        raise RecordError(fields.source, "document 0 is empty or blank")
    for i in positives:
        if not 0 <= i < len(texts):
            raise RecordError(fields.source, _outside(i, len(texts)))
    places = {old: new for new, old in enumerate(kept)}
    found = tuple(places[i] for i in positives if i in places)
    return {
        "documents": tuple(texts[i] for i in kept),
        "positives": found,
        "missing": missing + len(positives) - len(found),
        "left_out": len(texts) - len(kept),
        "source": fields.source,
    }


def answers_each(fields: Fields, name: str) -> dict[str, Any]:
    """Return the fields of a `Record` that answers to several questions give."""
    each = fields.answers_each(name)
    several = any(len(texts) > 1 for texts in each)
    targets = tuple(texts[0] for texts in each)
    return {"answers": targets, "accepted": each if several else ()}


def _outside(index: int, count: int) -> str:
    said = f"but there are only {count} documents (counted from 0)"
    return f"positive document {index}, {said}"


def read_clara(values: Any, source: str) -> Record:
    """Read the stage format of the CLaRa release.

    Fields are ``docs`` (texts, or objects with title and text), ``question`` (a string
    or several), ``answer`` or ``answers`` (likewise), and optionally ``data_type`` (one
    of `KINDS`, ``qa`` by default), ``pos_index`` (indices into ``docs``),
    ``gold_answer`` (accepted answers, when the target is a model's own), ``id``,
    ``missing``, ``answerable``. A question without answers is one of a test set. Other
    fields are ignored, unless they are one
    of these misspelt.

    Raises:
      ClaraError: a misspelt, missing or mistyped field, or contents that make no sense.
    """
    fields = Fields(values, source)
    kind = fields.text("data_type", "qa")
    if kind not in KINDS:
        raise RecordError(
            source, f"data_type is '{kind}', but must be one of {', '.join(KINDS)}"
        )
    needed = _NEEDED.split() + ["question"] * (kind == "qa")
    fields.refuse_misspelt(needed, CLARA_FIELDS.split())
    found = fields.passages("docs")
    positives = fields.places("pos_index") or tuple(found.marked)
    missing = fields.number("missing", 0)
    given = documents_of(fields, found.texts, positives, missing)
    if kind == "text":
        return Record(kind=kind, **given)
    gold = fields.answers("gold_answer")
    if "answer" in fields and "answers" in fields:
        raise RecordError(source, "has both 'answer' and 'answers'; keep one")
    several = fields.first(("answer", "answers"))
    questions = fields.several("question") if kind == "qa" else ()
    if len(questions) > 1:
        each = answers_each(fields, several if several in fields else "gold_answer")
    else:
        each = {"answers": fields.answers(several) or gold}
    answers = each["answers"]
    if not answers and kind != "qa":
        raise RecordError(source, f"field '{several}' is missing or empty")
    return Record(
        questions=questions,
        kind=kind,
        gold=gold or answers,
        answerable=fields.flag("answerable", True),
        id=fields.name("id", "_id"),
        **each,
        **given,
    )


def clara_fields(
    documents: Sequence[str],
    question: str,
    target: str,
    gold: Sequence[str],
    positives: Sequence[int],
    missing: int = 0,
    id: str = "",
) -> dict[str, Any]:
    """Return a question with its documents as `read_clara` reads it.

    One whose right answer is `NO_ANSWER` is not answerable; without `gold`, its answer
    is not known.
    """
    answers: dict[str, Any] = {"answers": [target], "gold_answer": list(gold)}
    if not gold:
        answers = {}
    elif gold[0] == target:
        answers = {"answers": list(gold)}
    if tuple(gold) == UNANSWERABLE:
        answers = {"answerable": False}
    fields = {"docs": list(documents), "question": question, **answers}
    fields |= {"data_type": "qa", "pos_index": list(positives)}
    known = {"missing": missing, "id": id}
    return fields | {name: value for name, value in known.items() if value}


def read_text(values: Any, source: str) -> Record:
    """Read a passage: ``text``, and optionally ``title`` and ``id``."""
    fields = Fields(values, source)
    title, text = fields.text("title", ""), fields.text("text")
    document = passage(title, text) if title else text
    return Record((document,), kind="text", source=source)
