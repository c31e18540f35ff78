"""One record of any data set, and what makes one out of each published format."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from clara_jax.documents import is_unicode
from clara_jax.errors import ClaraError

KINDS = ("qa", "paraphrase", "text")
CLARA_FIELDS = "docs question answer answers data_type pos_index gold_answer id _id"
_LISTS = (list, tuple)
_STRINGS = "a string or a list of strings"


@dataclasses.dataclass(frozen=True)
class Record:
    """Documents with what is asked about them.

    Attributes:
      documents: at least one; never blank.
      questions: as many as `answers`, or one question with several accepted answers;
        empty for kinds ``paraphrase`` and ``text``.
      answers: targets; of a paraphrase, the text to give back.
      kind: one of `KINDS`; ``text`` is documents and nothing else.
      positives: indices of the documents that hold the answer; empty when unknown.
      gold: answers that count as right in evaluation, the first being the main one.
      source: where it was read, ``file:line``.
    """

    documents: tuple[str, ...]
    questions: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    kind: str = "qa"
    positives: tuple[int, ...] = ()
    gold: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if fault := self._fault():
            raise ClaraError(f"{self.source}: {fault}")

    def _fault(self) -> str:
        count, questions = len(self.documents), len(self.questions)
        if not count:
            return "has no documents"
        for i, text in enumerate(self.documents):
            if not text.strip():
                return f"document {i} is empty or blank"
        texts = (*self.documents, *self.questions, *self.answers, *self.gold)
        if not all(map(is_unicode, texts)):
            return "holds half of a surrogate pair, which is not text"
        if self.kind != "qa":
            return ""
        if not questions or not all(q.strip() for q in self.questions):
            return "a question is empty or blank"
        if 1 < questions != len(self.answers):
            return f"has {questions} questions, but {len(self.answers)} answers"
        for i in self.positives:
            if not 0 <= i < count:
                said = f"but there are only {count} documents (counted from 0)"
                return f"positive document {i}, {said}"
        return ""

    def pair(self, index: int = 0) -> tuple[str, str, tuple[str, ...]]:
        """Return question `index`, its target, and the answers that count as right."""
        if len(self.questions) > 1:
            answer = self.answers[index]
            return self.questions[index], answer, (answer,)
        question = next(iter(self.questions), "")
        return question, self.answers[0], self.gold or self.answers


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

    def question(
        self, documents: Sequence[str], positives: Sequence[int], aliases: Any = ()
    ) -> Record:
        """Make a record of one question with its documents."""
        answer = self.text("answer")
        return Record(
            tuple(documents),
            questions=(self.text("question"),),
            answers=(answer,),
            positives=tuple(positives),
            gold=(answer, *aliases),
            source=self.source,
        )


def read_clara(values: Any, source: str) -> Record:
    """Read the stage format of the CLaRa release.

    Fields are ``docs`` (strings), ``question`` (a string or several), ``answer`` or
    ``answers`` (likewise), and optionally ``data_type`` (one of `KINDS`, ``qa`` by
    default), ``pos_index`` (indices into ``docs``), ``gold_answer`` (accepted answers,
    when the target is a model's own), ``id``.


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
    answers = fields.several(name, gold or None)
    if not answers:
        raise ClaraError(f"{source}: the list of answers is empty")
    questions = fields.several("question") if kind == "qa" else ()
    places = fields.several("pos_index", (), int, "a list of integers")
    positives = tuple(dict.fromkeys(places))
    gold = gold or answers
    return Record(documents, questions, answers, kind, positives, gold, source)


def clara_fields(
    documents: Sequence[str],
    question: str,
    target: str,
    gold: Sequence[str],
    positives: Sequence[int],
) -> dict[str, Any]:
    """Return a question with its documents as `read_clara` reads it."""
    answers = {"answers": [target], "gold_answer": list(gold)}
    if gold and gold[0] == target:
        answers = {"answers": list(gold)}
    fields = {"docs": list(documents), "question": question, **answers}
    return {**fields, "data_type": "qa", "pos_index": list(positives)}


def read_hotpotqa(values: Any, source: str) -> Record:
    """Read HotpotQA or 2WikiMultihopQA as published.

    Fields are ``question``, ``answer``, ``context`` as [title, [sentence]] pairs, and
    ``supporting_facts`` as [title, sentence index] pairs; others are ignored.
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
    facts = fields.get("supporting_facts", _LISTS, "a list")
    try:
        gold_titles = {fact[0] for fact in facts}
    except (TypeError, IndexError, KeyError):
        wanted = "a list of [title, sentence index] pairs"
        raise fields.wrong("supporting_facts", wanted) from None
    positives = [i for i, title in enumerate(titles) if title in gold_titles]
    return fields.question(documents, positives)


def read_musique(values: Any, source: str) -> Record:
    """Read MuSiQue as published.

    Fields are ``question``, ``answer``, ``answer_aliases``, and ``paragraphs`` with
    ``title``, ``paragraph_text``, ``is_supporting``; others are ignored.
    """
    fields = _Fields(values, source)
    documents, positives = [], []
    for i, value in enumerate(fields.get("paragraphs", _LISTS, "a list")):
        paragraph = _Fields(value, f"{source}: paragraph {i}")
        title, text = paragraph.text("title"), paragraph.text("paragraph_text")
        documents.append(passage(title, text))
        if paragraph.get("is_supporting", object, "true or false"):
            positives.append(i)
    aliases = fields.several("answer_aliases", ())
    return fields.question(documents, positives, aliases)


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
