"""The first pass over a mix's sources: passages once, cut, with their questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clara_jax.data.mix_work import (
    MULTI,
    PARAPHRASE,
    SINGLE,
    TEXT,
    Work,
    draw,
    text_key,
)
from clara_jax.data.near_duplicates import NearDuplicates, likeness, shingles
from clara_jax.data.pieces import split_text
from clara_jax.data.progress import Progress
from clara_jax.data.recipe import SPLITS, Recipe, Source
from clara_jax.data.records import Record
from clara_jax.data.sources import open_records
from clara_jax.text import ClaraTokenizer

CHUNK = 256
"""Records of a step."""

_COMPARED = 64
"""Texts that a text is compared with at most, and that are kept of one band."""

_YES_NO = ("yes", "no", "true", "false")


class Kind(NamedTuple):
    """What a record is to the mix.

    Attributes:
      kind: out of ``mix_work``.
      gold: documents that hold the answer, the first one first.
      dropped: why it cannot be used; empty if it can.
    """

    kind: int
    gold: tuple[int, ...]
    dropped: str = ""


def kind_of(record: Record, source: Source) -> Kind:
    """Say what a record is."""
    first = (0,)
    if record.kind == "text":
        return Kind(TEXT, ())
    if record.kind == "paraphrase":
        return Kind(PARAPHRASE, first)
    if len(record.documents) == 1:
        return Kind(SINGLE, first)
    if record.positives:
        return Kind(MULTI, record.positives)
    if source.gold == "all":
        return Kind(MULTI, tuple(range(len(record.documents))))
    return Kind(MULTI, (), "without_gold")


class Scan:
    """Reads the sources into a work database, going on where it stopped.

    Args:
      recipe: the sources.
      paths: files of each source.
      tokenizer: counts tokens.
      max_length: longest piece of a passage, in tokens.
      work: the database.
    """

    def __init__(
        self,
        recipe: Recipe,
        paths: Sequence[Sequence[Path]],
        tokenizer: ClaraTokenizer,
        max_length: int,
        work: Work,
    ):
        self._recipe, self._paths, self._work = recipe, paths, work
        self._tokenizer, self._limit = tokenizer, max_length
        self._near = None
        if recipe.near_duplicate < 1:
            self._near = NearDuplicates(recipe.near_duplicate)

    def run(self, progress: Progress) -> None:
        """Read everything that is not read yet.

        Raises:
          ClaraError: a record is not as its format says; names file and line.
        """
        work = self._work
        first, begin = work.note("scanned") or (0, 0)
        work.do("CREATE TEMP TABLE IF NOT EXISTS fresh(band INTEGER, passage INTEGER)")
        for number in range(first, len(self._recipe.source)):
            source = self._recipe.source[number]
            paths = [str(path) for path in self._paths[number]]
            records = open_records(paths, source.format)
            with progress(
                desc=f"read {source.name}",
                total=len(records),
                initial=begin,
                unit="rec",
            ) as bar:
                while begin < len(records):
                    chunk = records[begin : begin + CHUNK]
                    with work.step():
                        full = self._take(number, chunk)
                        begin += len(chunk)
                        following = (number + 1, 0) if full else (number, begin)
                        work.set_note("scanned", following)
                    bar.update(len(chunk))
                    if full:
                        break
            begin = 0
        with work.step():
            work.set_note("scanned", (len(self._recipe.source), 0))

    def _take(self, number: int, chunk: Sequence[Record]) -> bool:
        """Store a chunk of records; whether the source has reached its limit."""
        limit = self._recipe.source[number].limit
        own = self._own(number) if limit else set()
        texts: dict[bytes, str] = {}
        taken: list[tuple[Record, list[bytes]]] = []
        for record in chunk:
            if limit and len(own) >= limit:
                break
            keys = [text_key(text) for text in record.documents]
            own.update(keys)
            for key, text in zip(keys, record.documents, strict=True):
                texts.setdefault(key, text)
            taken.append((record, keys))
        known = self._passages(texts)
        for record, keys in taken:
            self._record(number, record, [known[key] for key in keys])
        return bool(limit) and len(own) >= limit

    def _own(self, number: int) -> set[bytes]:
        """Keys of the passages of a source so far."""
        rows = self._work.do(
            "SELECT DISTINCT key FROM records JOIN docs ON record = records.id "
            "JOIN passages ON passages.id = passage WHERE source = ?",
            (number,),
        )
        return {key for (key,) in rows}

    def _passages(self, texts: dict[bytes, str]) -> dict[bytes, int]:
        """Numbers of passages; those that are new are stored, cut and compared."""
        work = self._work
        known: dict[bytes, int] = {}
        for key in texts:
            found = work.row("SELECT id FROM passages WHERE key = ?", (key,))
            if found is not None:
                known[key] = found[0]
        new = [key for key in texts if key not in known]
        (last,) = work.row("SELECT coalesce(max(id), 0) FROM passages")
        for passage, key in enumerate(new, last + 1):
            known[key] = passage
            work.do(
                "INSERT INTO passages(id, key, text, draw, grp) VALUES (?, ?, ?, ?, ?)",
                (passage, key, texts[key], self._draw(key), passage),
            )
        self._cut([(known[key], texts[key]) for key in new])
        if self._near is not None and new:
            self._compare(self._near, [(known[key], texts[key]) for key in new])
        return known

    def _draw(self, key: bytes) -> int:
        return draw("side", self._recipe.seed, key.hex())

    def _cut(self, passages: Sequence[tuple[int, str]]) -> None:
        """Store the pieces of new passages."""
        lengths = self._tokenizer.document_lengths([text for _, text in passages])
        for (passage, text), length in zip(passages, lengths, strict=True):
            pieces = [(0, len(text), length)]
            if length > self._limit:
                spans = split_text(text, self._tokenizer, self._limit)
                parts = [text[start:stop] for start, stop in spans]
                counted = self._tokenizer.document_lengths(parts)
                pieces = [(*s, n) for s, n in zip(spans, counted, strict=True)]
            self._work.do_many(
                "INSERT INTO pieces(passage, part, start, stop, tokens) "
                "VALUES (?, ?, ?, ?, ?)",
                [(passage, part, *piece) for part, piece in enumerate(pieces)],
            )

    def _compare(
        self, near: NearDuplicates, passages: Sequence[tuple[int, str]]
    ) -> None:
        """Find near-duplicates of new passages among all before them.

        All of them are on one side. One that is near to a passage that is no
        near-duplicate itself is dropped for the first such.
        """
        work = self._work
        bands = near.bands([text for _, text in passages])
        work.do("DELETE FROM fresh")
        rows = [
            (int(band), passage)
            for (passage, _), row in zip(passages, bands, strict=True)
            for band in row
        ]
        work.do_many("INSERT INTO fresh VALUES (?, ?)", rows)
        work.do_many(
            "INSERT OR IGNORE INTO bands SELECT ?1, ?2 WHERE "
            f"(SELECT count(*) FROM bands WHERE band = ?1) < {_COMPARED}",
            rows,
        )
        pairs = work.do(
            "SELECT DISTINCT f.passage, b.passage FROM fresh f JOIN bands b "
            "ON b.band = f.band AND b.passage < f.passage ORDER BY 1, 2"
        ).fetchall()
        texts = dict(passages)
        compared = dict.fromkeys(texts, 0)
        for passage, other in pairs:
            if compared[passage] >= _COMPARED:
                continue
            compared[passage] += 1
            text = texts.get(other) or self._text(other)
            found = likeness(shingles(texts[passage]), shingles(text))
            if found >= near.threshold:
                work.join((passage, other))
                work.do(
                    "UPDATE passages SET same = ?1 WHERE id = ?2 AND same IS NULL AND "
                    "(SELECT same FROM passages WHERE id = ?1) IS NULL",
                    (other, passage),
                )

    def _text(self, passage: int) -> str:
        return self._work.row("SELECT text FROM passages WHERE id = ?", (passage,))[0]

    def _record(self, number: int, record: Record, passages: Sequence[int]) -> None:
        """Store a record, its documents and questions."""
        work, source = self._work, self._recipe.source[number]
        kind, gold, dropped = kind_of(record, source)
        if kind == TEXT and len(passages) > 1:
            for i, passage in enumerate(passages):
                one = Record((record.documents[i],), kind="text", source=record.source)
                self._record(number, one, [passage])
            return
        cursor = work.do(
            "INSERT INTO records(source, place, kind, split, dropped) "
            "VALUES (?, ?, ?, ?, ?)",
            (number, record.source, kind, SPLITS.index(source.split), dropped or None),
        )
        name = cursor.lastrowid
        if name is None:
            raise AssertionError("the database numbers its rows")
        if dropped:
            work.count(number, dropped, max(len(record.questions), 1))
        marks = {passages[i]: 1 for i in gold}
        marks |= {passages[gold[0]]: 2} if gold else {}
        questions = list(_pairs(record))
        # Repeated documents of one record count once.
        for position, passage in enumerate(dict.fromkeys(passages)):
            mark = marks.get(passage, 0)
            part = 0
            if mark and kind == MULTI:
                part = self._part(passage, questions[0][2]) or 0
            work.do(
                "INSERT INTO docs VALUES (?, ?, ?, ?, ?)",
                (name, position, passage, part, mark),
            )
        if kind == TEXT or dropped:
            return
        hint = "|".join(map(str, sorted(marks)))
        for question, target, answers in questions:
            if not target.strip():
                work.count(number, "unanswerable")
                continue
            piece = None
            if kind != MULTI:
                piece = self._piece(number, kind, passages[0], (target, *answers))
                if piece is None:
                    continue
            said = f"{hint}\n{kind}\n{question}"
            said += f"\n{target}" if kind == PARAPHRASE else ""
            done = work.do(
                "INSERT OR IGNORE INTO questions(record, piece, key, question, target, "
                "gold) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    name,
                    piece,
                    text_key(said.lower()),
                    question,
                    target,
                    json.dumps(answers, ensure_ascii=False),
                ),
            )
            if not done.rowcount:
                work.count(number, "repeated_questions")

    def _piece(
        self, number: int, kind: int, passage: int, answers: Sequence[str]
    ) -> int | None:
        """The piece that a question or paraphrase goes to; None drops it, counted."""
        part = 0
        if kind == SINGLE:
            part = self._part(passage, answers)
            if part is None:
                self._work.count(number, "unanswerable")
                return None
        found = self._work.do(
            "SELECT id FROM pieces WHERE passage = ? ORDER BY part", (passage,)
        ).fetchall()
        if kind == PARAPHRASE and len(found) > 1:
            self._work.count(number, "long_paraphrases")
            return None
        return found[part][0]

    def _part(self, passage: int, answers: Sequence[str]) -> int | None:
        """The piece that holds an answer.

        Returns:
          The first one that does. Where the whole text holds none, or the answer is
          yes or no, the first piece. None where a cut goes through the answer.
        """
        pieces = self._work.do(
            "SELECT start, stop FROM pieces WHERE passage = ? ORDER BY part", (passage,)
        ).fetchall()
        if len(pieces) == 1 or any(a.strip(" .").lower() in _YES_NO for a in answers):
            return 0
        text = self._text(passage)
        places = [place for answer in answers for place in _places(text, answer)]
        for part, (start, stop) in enumerate(pieces):
            if any(start <= first and last <= stop for first, last in places):
                return part
        return None if places else 0


def _pairs(record: Record) -> Iterator[tuple[str, str, list[str]]]:
    """Questions, their targets and the answers that count as right."""
    if record.kind == "text":
        return
    for i in range(max(len(record.questions), 1)):
        question, target, gold = record.pair(i)
        yield question, target, list(gold)


def _places(text: str, answer: str) -> list[tuple[int, int]]:
    """Where an answer stands in a text, as words of it if it can."""
    words = answer.split()
    if not words:
        return []
    pattern = r"\s+".join(map(re.escape, words))
    for form in (rf"(?<!\w){pattern}(?!\w)", pattern):
        found = [m.span() for m in re.finditer(form, text, re.IGNORECASE)]
        if found:
            return found
    return []
