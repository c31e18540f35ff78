"""Readers of published formats, and which of them a record is in."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from clara_jax.data.fields import GROUND_TRUTHS, Fields, Passages, opened
from clara_jax.data.folders import Rows
from clara_jax.data.records import (
    CLARA_FIELDS,
    Reader,
    Record,
    answers_each,
    documents_of,
    read_clara,
    read_text,
)
from clara_jax.errors import ClaraError, RecordError

QUESTIONS = "question query questions input user_input".split()
DOCUMENTS = (
    "documents docs contexts context passages passage ctxs paragraphs "
    "retrieved_contexts"
).split()
ANSWERS = "answer answers golden_answers gold_answers gold_answer".split()
_IDS = "id _id qid query_id question_id example_id".split()
_OURS = {
    "documents": "docs",
    "questions": "question",
    "positives": "pos_index",
    "gold": "gold_answer",
    "kind": "data_type",
}
"""Other names of fields of our format, to be used for them in ``data.fields``."""

_NOTHING = "No Answer Present."
"""The answer of MS MARCO to what its passages do not answer."""
_UNKNOWN = "<unk>"
"""The answer of TriviaQA in its test set."""


def _question(
    fields: Fields,
    found: Passages,
    positives: Sequence[int] = (),
    missing: int = 0,
    **given: Any,
) -> Record:
    """Make a record of what is asked about documents.

    One of several questions has as many answers; a single one has all that count as
    right. Without an answer it is one of a test set.
    """
    questions = fields.several(fields.first(QUESTIONS))
    gold = given.pop("gold", None)
    names = _answer_names(fields)
    gold = fields.answers(*names) if gold is None else gold
    each: dict[str, Any] = {"answers": gold[:1]}
    if len(questions) > 1:
        each, gold = answers_each(fields, fields.first(names)), ()
    return Record(
        questions=questions,
        gold=gold or each["answers"],
        **each,
        id=fields.name(*_IDS),
        **documents_of(fields, found.texts, positives or found.marked, missing),
        **given,
    )


def _answer_names(fields: Fields) -> list[str]:
    """Return what the fields with right answers may be called, in this record."""
    truths = [name for name in GROUND_TRUTHS if name in fields]
    return [*truths, *(name for name in ANSWERS if not truths or name != "answer")]


def read_questions(values: Any, source: str) -> Record:
    """Read a question by the names that are usual: NQ-open, FlashRAG and many others.

    The question is in the first of `QUESTIONS` that is there, documents are in the
    first of `DOCUMENTS` (texts, or objects with title and text), and answers in all of
    `ANSWERS`, or in those of `GROUND_TRUTHS`; other fields are ignored. Without
    documents it can be asked of a corpus.
    """
    fields = Fields(values, source)
    positives = fields.places("pos_index")
    missing = fields.number("missing", 0)
    answerable = fields.flag("answerable", True)
    found = fields.passages(fields.first(DOCUMENTS))
    return _question(fields, found, positives, missing, answerable=answerable)


def read_hotpotqa(values: Any, source: str) -> Record:
    """Read HotpotQA or 2WikiMultihopQA, as published or as on the hub.

    Fields are ``_id``, ``question``, ``answer``, ``context`` as [title, [sentence]]
    pairs, and ``supporting_facts`` as [title, sentence index] pairs; or both as an
    object of lists, or as JSON text. Others are ignored. Test sets have no answers and
    no supporting facts.
    """
    fields = Fields(values, source)
    wanted = "a list of [title, [sentences]] pairs"
    context = opened(fields.get("context", object, ""))
    if not isinstance(context, list | tuple | Mapping):
        raise fields.wrong("context", wanted)
    found = fields.passages("context", wanted)
    known = None if fields.answers("answer") else ()
    facts = opened(fields.get("supporting_facts", object, "", known))
    try:
        columns = isinstance(facts, Mapping)
        gold = set(facts.get("title") or ()) if columns else {f[0] for f in facts or ()}
    except (TypeError, IndexError, KeyError):
        wanted = "a list of [title, sentence index] pairs"
        raise fields.wrong("supporting_facts", wanted) from None
    positives = [i for i, title in enumerate(found.titles) if title in gold]
    missing = len(gold.difference(found.titles))
    return _question(fields, found, positives, missing)


def read_musique(values: Any, source: str) -> Record:
    """Read MuSiQue as published.

    Fields are ``id``, ``question``, ``answer``, ``answer_aliases``, ``answerable``, and
    ``paragraphs`` with ``idx``, ``title``, ``paragraph_text``, ``is_supporting``;
    others are ignored. Test sets have no answers and do not say what is supporting.
    """
    fields = Fields(values, source)
    places = []
    gold = fields.answers("answer", "answer_aliases")
    known = fields.answers("answer")
    for i, value in enumerate(fields.get("paragraphs", (list, tuple), "a list")):
        paragraph = Fields(value, f"{source}: paragraph {i}")
        for name in ("title", "paragraph_text"):
            paragraph.text(name)
        places.append(paragraph.number("idx", i))
        paragraph.get("is_supporting", object, "", None if known else False)
    found = fields.passages("paragraphs")
    numbered = zip(places, found.texts, strict=True)
    return _question(
        fields,
        found,
        gold=gold * bool(known),
        answerable=fields.flag("answerable", True),
        places=tuple(place for place, text in numbered if text.strip()),
    )


def read_squad(values: Any, source: str, answered: bool = False) -> Record:
    """Read a question of SQuAD 1.1 or 2.0, or of MRQA, with its one passage.

    Fields are ``id``, ``question``, ``context``, perhaps ``title``, and ``answers``: an
    object with a list ``text``, objects with ``text``, or texts. Where
    ``is_impossible`` says so, the passage does not answer it. Without that field, an
    empty list or text says so if other questions of the file are `answered`; in a test
    set, whose answers are hidden, all are empty.
    """
    fields = Fields(values, source)
    found = fields.passages("context")
    names = _answer_names(fields)
    gold = fields.answers(*names)
    empty = not gold and any(name in fields for name in names)
    answerable = not fields.flag("is_impossible", empty and answered)
    positives = (0,) if gold and answerable and len(found.texts) == 1 else ()
    return _question(fields, found, positives, gold=gold, answerable=answerable)


def read_triviaqa(values: Any, source: str) -> Record:
    """Read TriviaQA as on the hub, or as published.

    Fields are ``question_id``, ``question``, ``answer`` (``value``, ``aliases``), and
    with documents ``entity_pages`` (``title``, ``wiki_context``) and
    ``search_results`` (``title``, ``search_context``). As published they are
    ``QuestionId``, ``Question`` and ``Answer`` (``Value``, ``Aliases``,
    ``HumanAnswers``), and there are no documents, only names of their files. The test
    set's answer, `_UNKNOWN`, is none.
    """
    fields = Fields(values, source)
    if "Question" in fields:
        answer = Fields(fields.get("Answer", object, "", {}), f"{source}: Answer")
        return Record(
            documents=(),
            questions=(fields.text("Question"),),
            answers=(gold := answer.answers("Value", "Aliases", "HumanAnswers"))[:1],
            gold=gold,
            id=fields.name("QuestionId"),
            source=source,
        )
    found = fields.passages("entity_pages")
    other = fields.passages("search_results")
    texts, titles = found.texts + other.texts, found.titles + other.titles
    name = fields.name("question_id", *_IDS)
    gold = tuple(text for text in fields.answers(*ANSWERS) if text != _UNKNOWN)
    record = _question(fields, Passages(texts, titles, []), gold=gold)
    return dataclasses.replace(record, id=name)


def read_kilt(values: Any, source: str) -> Record:
    """Read KILT: ``id``, ``input`` (the question), and ``output`` with ``answer``.

    Items of ``output`` that have only a ``provenance`` are no answers, as in KILT's own
    script. There are no documents: a provenance names pages of Wikipedia.
    """
    fields = Fields(values, source)
    outputs = opened(fields.get("output", object, "", ()))
    if isinstance(outputs, list):
        said = [item for item in outputs if not _is_provenance(item)]
        fields = Fields({**values, "output": said}, source)
    gold = fields.answers("output")
    return _question(fields, Passages([], [], []), gold=gold)


def _is_provenance(item: Any) -> bool:
    return isinstance(item, Mapping) and "provenance" in item and "answer" not in item


def read_msmarco(values: Any, source: str) -> Record:
    """Read MS MARCO's questions with passages.

    Fields are ``query_id``, ``query``, ``answers``, and ``passages`` (``passage_text``,
    ``is_selected``).
    """
    fields = Fields(values, source)
    answerable = fields.answers("answers") != (_NOTHING,)
    return _question(fields, fields.passages("passages"), answerable=answerable)


def read_dpr(values: Any, source: str) -> Record:
    """Read the training format of DPR.

    Fields are ``question``, ``answers``, ``positive_ctxs``, ``hard_negative_ctxs`` and
    ``negative_ctxs``; documents are in this order.
    """
    fields = Fields(values, source)
    right = fields.passages("positive_ctxs")
    texts, titles = list(right.texts), list(right.titles)
    for name in ("hard_negative_ctxs", "negative_ctxs"):
        found = fields.passages(name)
        texts, titles = texts + found.texts, titles + found.titles
    positives = range(len(right.texts))
    return _question(fields, Passages(texts, titles, []), positives)


def read_paraphrase(values: Any, source: str) -> Record:
    """Read a document with its paraphrase, or with a question.

    Fields are ``doc`` and ``paraphrase``, ``answer`` or ``answers``; or ``doc``,
    ``question`` and an answer.
    """
    fields = Fields(values, source)
    found = fields.passages(fields.first(("doc", *DOCUMENTS)))
    if any(fields.several(name, ()) > ("",) for name in QUESTIONS):
        positives = (0,) if fields.answers(*ANSWERS) else ()
        return _question(fields, found, positives)
    texts = fields.answers("paraphrase", "paraphrases", truths=False)
    texts = tuple(dict.fromkeys((*texts, *fields.answers(*ANSWERS))))
    if not texts:
        raise RecordError(source, "field 'paraphrase' is missing")
    given = documents_of(fields, found.texts, ())
    return Record(answers=texts, gold=texts, kind="paraphrase", **given)


FORMATS: dict[str, Reader] = {
    "clara": read_clara,
    "questions": read_questions,
    "hotpotqa": read_hotpotqa,
    "2wikimultihopqa": read_hotpotqa,
    "musique": read_musique,
    "squad": read_squad,
    "triviaqa": read_triviaqa,
    "kilt": read_kilt,
    "msmarco": read_msmarco,
    "dpr": read_dpr,
    "paraphrase": read_paraphrase,
    "text": read_text,
}


def reader_of(format: str, rows: Rows) -> Reader:
    """Return what reads the records of a file in a format, a key of `FORMATS`."""
    if format == "squad":
        answered = any(_is_answered(rows, i) for i in range(len(rows)))
        return functools.partial(read_squad, answered=answered)
    return FORMATS[format]


def _is_answered(rows: Rows, index: int) -> bool:
    try:
        return bool(Fields(*rows[index]).answers(*ANSWERS))
    except ClaraError:  # a bad record, which is named when it is read
        return False


def detect_format(values: Any, source: str) -> str:
    """Return the format, of `FORMATS`, of a file by its first record, or refuse."""
    fields = list(map(str, values)) if isinstance(values, Mapping) else []
    if name := _format_of(values) if fields else "":
        return name
    if isinstance(values, Mapping) and all(v is None for v in values.values()):
        raise RecordError(source, "all its fields are null; leave this record out")
    remedy = "name its fields with --fields question=NAME,answers=NAME,documents=NAME"
    raise RecordError(
        source,
        f"is of no known format (fields: {', '.join(fields) or 'none'}); "
        f"{remedy} (in a config, data.fields)",
    )


def _format_of(values: Mapping[str, Any]) -> str:
    """Return the format that a record's fields are a sign of; empty if none is."""
    has = {name for name, value in values.items() if value is not None}
    context = opened(values.get("context"))
    asked = has.intersection(QUESTIONS)
    if "data_type" in has or ("docs" in has and not _has_usual_names(has)):
        return "clara"
    if "positive_ctxs" in has:
        return "dpr"
    if has & {"entity_pages", "search_results"} or {"Question", "QuestionId"} <= has:
        return "triviaqa"
    if {"input", "output"} <= has:
        if isinstance(opened(values["output"]), list | Mapping):
            return "kilt"
        if asked == {"input"}:  # instructions, or prompts of any kind
            return ""
    test = _is_hotpot(context) and not has.intersection(ANSWERS)
    if "supporting_facts" in has or test:
        return "2wikimultihopqa" if "evidences" in has else "hotpotqa"
    if isinstance(context, str) and asked:
        return "squad"
    match values.get("paragraphs"):
        case [{"paragraph_text": _}, *_]:
            return "musique"
    match opened(values.get("passages")):
        case {"is_selected": _} | [{"is_selected": _}, *_]:
            return "msmarco"
    if has & {"doc", "paraphrase"}:
        return "paraphrase"
    if asked:
        return "questions"
    return "text" if "text" in has else ""


def _has_usual_names(has: set[str]) -> bool:
    """Whether a question or its answers are called as in `read_questions` only.

    That is so where just the documents are named in ``data.fields``.
    """
    asked = has.intersection(QUESTIONS)
    answered = has.intersection(ANSWERS) - {"gold_answer", "gold_answers"}
    foreign = bool(asked) and "question" not in asked
    truths = has & {"ground_truth", "ground_truths"}
    return foreign or bool(truths) or answered == {"golden_answers"}


def _is_hotpot(context: Any) -> bool:
    match context:
        case {"title": _}:
            return True
        case [[_, [*_]], *_]:
            return True
    return False


def check_fields(given: Sequence[str]) -> dict[str, str]:
    """Return ``OURS=THEIRS`` texts as a mapping, or refuse them."""
    known = [*dict.fromkeys((*_OURS, *CLARA_FIELDS.split(), "text", "title"))]
    names: dict[str, str] = {}
    for text in given:
        ours, sign, theirs = (part.strip() for part in text.partition("="))
        if not (sign and ours and theirs):
            raise ClaraError(
                f"data.fields holds '{text}'; write for example "
                "question=query,answers=golden"
            )
        if ours not in known:
            raise ClaraError(
                f"data.fields names '{ours}', but must name one of {', '.join(known)}"
            )
        names[_OURS.get(ours, ours)] = theirs
    return names
