"""One record of any data set, and what makes one out of each published format."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from clara_jax.documents import is_unicode
from clara_jax.errors import ClaraError

KINDS = ("qa", "paraphrase", "text")
CLARA_FIELDS = (
    "docs question answer answers data_type pos_index gold_answer id _id missing "
    "answerable"
)
NO_ANSWER = "noanswer"
"""What is to be answered where the documents hold no answer; HotpotQA's word."""
UNANSWERABLE = (NO_ANSWER, "")
"""What counts as right then."""
_LISTS = (list, tuple)
_STRINGS = "a string or a list of strings"


@dataclasses.dataclass(frozen=True)
class Record:
    """Documents with what is asked about them.

    Attributes:
      documents: at least one; never blank.
      questions: as many as `answers`, or one question with several accepted answers;
        empty for kinds ``paraphrase`` and ``text``.
      answers: targets; of a paraphrase, the text to give back. Empty, as `gold` then
        is, where they are not known: in a test set. No loss reads such a record.
      kind: one of `KINDS`; ``text`` is documents and nothing else.
      positives: indices of the documents that hold the answer; empty when unknown.
      gold: answers that count as right in evaluation, the first being the main one.
      source: where it was read, ``file:line``.
      missing: number of documents that hold the answer and are not among `documents`.
      answerable: whether the documents hold an answer. If not, `NO_ANSWER` is the
        target and counts as right, as does to say nothing, whatever else is given.
      id: the question's name in its data set, for files of a leaderboard.
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

    def __post_init__(self) -> None:
        if self.kind == "qa" and not self.answerable:
            targets = (NO_ANSWER,) * len(self.questions)
            object.__setattr__(self, "answers", targets)
            object.__setattr__(self, "gold", UNANSWERABLE)
        if fault := self._fault():
            raise ClaraError(f"{self.source}: {fault}")

    def _fault(self) -> str:
        count, questions = len(self.documents), len(self.questions)
        if not count:
            return "has no documents"
        for i, text in enumerate(self.documents):
            if not text.strip():
                return f"document {i} is empty or blank"
        texts = (*self.documents, *self.questions, *self.answers, *self.gold, self.id)
        if not all(map(is_unicode, texts)):
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
                said = f"but there are only {count} documents (counted from 0)"
                return f"positive document {i}, {said}"
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
            return question, answer, (answer,)
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


def passage(title: str, text: str) -> str:
    """Join title and text of a passage to one document: title, newline, text."""
    title, text = title.strip(), text.strip()
    return f"{title}\n{text}" if title and text else title or text


class _Fields:
    """The fields of one record, each checked as it is taken."""

    def __init__(self, values: Any, source: str, known: Sequence[str] = ()):
        if not isinstance(values, Mapping):
            raise ClaraError(f"{source}: is {_kind(values)}, but must be an object")
        self.values, self.source = values, source
        for name in values if known else ():
            if name not in known:
                hint = f"known are {', '.join(known)}"
                if near := difflib.get_close_matches(str(name), known, 1):
                    hint = f"did you mean '{near[0]}'"
                raise ClaraError(f"{source}: unknown field '{name}'; {hint}")

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, kind: Any, wanted: str, default: Any = None) -> Any:
        """Return a value of a kind, or the default where there is none."""
        value = self.values[name] if name in self else default
        if value is None:
            raise ClaraError(f"{self.source}: field '{name}' is missing")
        if not isinstance(value, kind):
            raise self.wrong(name, wanted)
        return value

    def wrong(self, name: str, wanted: str) -> ClaraError:
        got = _kind(self.values[name])
        return ClaraError(f"{self.source}: field '{name}' is {got}, not {wanted}")

    def text(self, name: str, default: str | None = None) -> str:
        return self.get(name, str, "a string", default)

    def several(
        self, name: str, default: Any = None, kind: type = str, wanted: str = _STRINGS
    ) -> tuple[Any, ...]:
        """One value of a kind, or a list of them."""
        value = self.get(name, (kind, *_LISTS), wanted, default)
        items = value if isinstance(value, _LISTS) else (value,)
        for item in items:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise self.wrong(name, wanted)
        return tuple(items)

    def name(self, *fields: str) -> str:
        """Return the record's name, in the first of the fields that is there."""
        for field in fields:
            if field in self:
                return str(self.get(field, (str, int), "a string or a number"))
        return ""

    def question(
        self, documents: Sequence[str], positives: Sequence[int], **fields: Any
    ) -> Record:
        """Make a record of one question with its documents.

        An answer that is absent, null or blank, as in test sets, is not known.

        Args:
          documents, positives: of the record.
          **fields: other fields of `Record`; `gold` adds to the answer.
        """
        answer = self.text("answer", "")
        known, aliases = bool(answer.strip()), fields.pop("gold", ())
        return Record(
            tuple(documents),
            questions=(self.text("question"),),
            answers=(answer,) * known,
            positives=tuple(positives),
            gold=(answer, *aliases) * known,
            source=self.source,
            id=self.name("_id", "id"),
            **fields,
        )


def read_clara(values: Any, source: str) -> Record:
    """Read the stage format of the CLaRa release.

    Fields are ``docs`` (strings), ``question`` (a string or several), ``answer`` or
    ``answers`` (likewise), and optionally ``data_type`` (one of `KINDS`, ``qa`` by
    default), ``pos_index`` (indices into ``docs``), ``gold_answer`` (accepted answers,
    when the target is a model's own), ``id``, ``missing``, ``answerable``. A question
    without answers is one of a test set.

    Raises:
      ClaraError: an unknown, missing or mistyped field, or contents that make no sense.
    """
    fields = _Fields(values, source, CLARA_FIELDS.split())
    kind = fields.text("data_type", "qa")
    if kind not in KINDS:
        raise ClaraError(
            f"{source}: data_type is '{kind}', but must be one of {', '.join(KINDS)}"
        )
    documents = fields.several("docs")
    if kind == "text":
        return Record(documents, kind=kind, source=source)
    gold = fields.several("gold_answer", ())
    if "answer" in fields and "answers" in fields:
        raise ClaraError(f"{source}: has both 'answer' and 'answers'; keep one")
    name = "answers" if "answers" in fields else "answer"
    answers = fields.several(name, gold or (() if kind == "qa" else None))
    if not answers and kind != "qa":
        raise ClaraError(f"{source}: the list of answers is empty")
    questions = fields.several("question") if kind == "qa" else ()
    places = fields.several("pos_index", (), int, "a list of integers")
    positives = tuple(dict.fromkeys(places))
    return Record(
        documents,
        questions,
        answers,
        kind,
        positives,
        gold or answers,
        source,
        missing=fields.get("missing", int, "a number", 0),
        answerable=fields.get("answerable", bool, "true or false", True),
        id=fields.name("id", "_id"),
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


def read_hotpotqa(values: Any, source: str) -> Record:
    """Read HotpotQA or 2WikiMultihopQA as published.

    Fields are ``_id``, ``question``, ``answer``, ``context`` as [title, [sentence]]
    pairs, and ``supporting_facts`` as [title, sentence index] pairs; others are
    ignored. Test sets have no answers and no supporting facts.
    """
    fields = _Fields(values, source)
    documents, titles = [], []
    for pair in fields.get("context", _LISTS, "a list"):
        match pair:
            case [str(title), [*sentences]] if all(
                isinstance(s, str) for s in sentences
            ):
                titles.append(title)
                documents.append(passage(title, " ".join(s.strip() for s in sentences)))
            case _:
                raise fields.wrong("context", "a list of [title, [sentences]] pairs")
    known = None if "answer" in fields else ()
    facts = fields.get("supporting_facts", _LISTS, "a list", known)
    try:
        gold_titles = {fact[0] for fact in facts}
    except (TypeError, IndexError, KeyError):
        wanted = "a list of [title, sentence index] pairs"
        raise fields.wrong("supporting_facts", wanted) from None
    positives = [i for i, title in enumerate(titles) if title in gold_titles]
    missing = len(gold_titles.difference(titles))
    return fields.question(documents, positives, missing=missing)


def read_musique(values: Any, source: str) -> Record:
    """Read MuSiQue as published.

    Fields are ``id``, ``question``, ``answer``, ``answer_aliases``, ``answerable``, and
    ``paragraphs`` with ``title``, ``paragraph_text``, ``is_supporting``; others are
    ignored. Test sets have no answers and do not say what is supporting.
    """
    fields = _Fields(values, source)
    answerable = fields.get("answerable", bool, "true or false", True)
    known = None if "answer" in fields else False
    documents, positives = [], []
    for i, value in enumerate(fields.get("paragraphs", _LISTS, "a list")):
        paragraph = _Fields(value, f"{source}: paragraph {i}")
        title, text = paragraph.text("title"), paragraph.text("paragraph_text")
        documents.append(passage(title, text))
        if paragraph.get("is_supporting", object, "true or false", known):
            positives.append(i)
    aliases = fields.several("answer_aliases", ())
    return fields.question(documents, positives, gold=aliases, answerable=answerable)


def read_text(values: Any, source: str) -> Record:
    """Read a passage: ``text``, and optionally ``title`` and ``id``."""
    fields = _Fields(values, source, ("text", "title", "id", "_id"))
    title, text = fields.text("title", ""), fields.text("text")
    return Record(
        (passage(title, text) if title else text,), kind="text", source=source
    )


FORMATS: dict[str, Reader] = {
    "clara": read_clara,
    "hotpotqa": read_hotpotqa,
    "2wikimultihopqa": read_hotpotqa,
    "musique": read_musique,
    "text": read_text,
}


def detect_format(values: Any, source: str) -> str:
    """Return the format, of `FORMATS`, of a file by its first record, or refuse."""
    fields = list(map(str, values)) if isinstance(values, Mapping) else []
    signs = {"docs": "clara", "context": "hotpotqa", "paragraphs": "musique"}
    if {"context", "evidences"}.issubset(fields):
        return "2wikimultihopqa"
    for sign, name in {**signs, "text": "text"}.items():
        if sign in fields:
            return name
    raise ClaraError(
        f"{source}: is of no known format (fields: {', '.join(fields) or 'none'}); a "
        "record has 'docs' (clara), 'context' (hotpotqa), 'paragraphs' (musique) or "
        "'text'"
    )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {value!r:.40}")
