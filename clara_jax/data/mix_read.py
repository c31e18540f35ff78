"""The first pass over a mix's sources: passages once, cut, with their questions.

Passages that are nearly the same or overlap, such as windows of one article, are joined
into one group: one must not be asked about while another is trained on.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.data.chunking import split_text
from clara_jax.data.mix_database import draw, text_key
from clara_jax.data.near_duplicates import (
    BANDS,
    NearDuplicates,
    contained,
    likeness,
    marks,
    piece_runs,
    shingles,
)
from clara_jax.data.recipe import Recipe, Source
from clara_jax.data.records import Record, all_faults, require_documents
from clara_jax.data.sources import Records, open_records
from clara_jax.data.work import Work
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer

CHUNK = 256
"""Records of a step, or passages, or pairs of them."""

COMMON = 50
"""Passages that have a mark at most: it is boilerplate, and joins none, if more do."""

_COMPARED = 64
"""Texts that a text is compared with at most, and that are kept of one band."""

_YES_NO = ("yes", "no", "true", "false")


@dataclasses.dataclass(frozen=True)
class Reader:
    """Read the sources of a recipe into a work database, going on where it stopped.

    `paths` are the files of each source, `max_length` is that of a piece, in tokens.
    """

    recipe: Recipe
    paths: Sequence[Sequence[str | Path]]
    tokenizer: ClaraTokenizer
    max_length: int
    work: Work

    def run(self) -> None:
        """Read everything that is not read yet."""
        for number in range(self.work.note("sources") or 0, len(self.paths)):
            source = self.recipe.source[number]
            how: Any = {"fields": source.fields, "encoding": source.encoding}
            records = open_records(self.paths[number], source.format, **how)
            take = functools.partial(self._take, number, records)
            self.work.in_steps(f"read {source.name}", len(records), CHUNK, take, "rec")
            self.work.set_note("sources", number + 1)

    def _take(self, number: int, records: Records, begin: int, end: int) -> bool:
        """Store some records; return whether the source has reached its limit."""
        limit = self.recipe.source[number].limit
        query = (
            "SELECT DISTINCT passage FROM records JOIN docs ON record = records.id "
            f"WHERE source = {number}"
        )
        own = {passage for (passage,) in self.work.execute(query)} if limit else set()
        new: dict[int, str] = {}
        taken: list[tuple[Record, list[int]]] = []

        def read(index: int) -> Record:
            require_documents(record := records[index])
            return record

        for i in range(begin, end):
            if limit and len(own) >= limit:
                break
            try:
                record = read(i)
            except ClaraError as error:
                others = range(i + 1, len(records))
                raise all_faults(read, others, error) from error
            passages = [self._passage(text, new) for text in record.documents]
            own.update(passages)
            # Documents without questions are a record each.
            parts = [[one] for one in passages] if record.kind == "text" else [passages]
            taken += [(record, part) for part in parts]
        lengths = self.tokenizer.document_lengths(list(new.values()))
        for (passage, text), length in zip(new.items(), lengths, strict=True):
            self._cut(passage, text, length)
        if self.recipe.near_duplicate < 1:
            self._compare(NearDuplicates(self.recipe.near_duplicate), new)
        for record, passages in taken:
            self._record(number, record, passages)
        return bool(limit) and len(own) >= limit

    def _passage(self, text: str, new: dict[int, str]) -> int:
        """Return the number of a passage; a new one is stored, and put in `new`."""
        key = text_key(text)
        found = self.work.row("SELECT id FROM passages WHERE key = ?", (key,))
        if found is not None:
            return found[0]
        chance = draw("side", self.recipe.seed, key.hex())
        number = self.work.insert(
            "INSERT INTO passages(key, text, draw, grp) SELECT ?, ?, ?, "
            "coalesce(max(id), 0) + 1 FROM passages",  # a group of its own
            (key, text, chance),
        )
        new[number] = text
        return number

    def _cut(self, passage: int, text: str, length: int) -> None:
        """Store the pieces of a passage."""
        pieces = [(0, len(text), length)]
        if length > self.max_length:
            spans = split_text(text, self.tokenizer, self.max_length)
            parts = [text[start:stop] for start, stop in spans]
            counted = self.tokenizer.document_lengths(parts)
            pieces = [(*s, n) for s, n in zip(spans, counted, strict=True)]
        self.work.executemany(
            "INSERT INTO pieces VALUES (NULL, ?, ?, ?, ?, ?)",
            [(passage, part, *piece) for part, piece in enumerate(pieces)],
        )

    def _compare(self, near: NearDuplicates, passages: Mapping[int, str]) -> None:
        """Join new passages with near-duplicates among all before them."""
        work = self.work
        query = (
            "SELECT DISTINCT passage FROM bands WHERE band IN "
            f"({', '.join('?' * BANDS)}) AND passage < ? ORDER BY 1 LIMIT {_COMPARED}"
        )
        every = near.bands(list(passages.values())).tolist()
        for (passage, text), bands in zip(passages.items(), every, strict=True):
            work.executemany(
                "INSERT OR IGNORE INTO bands SELECT ?1, ?2 WHERE "
                f"(SELECT count(*) FROM bands WHERE band = ?1) < {_COMPARED}",
                [(band, passage) for band in bands],
            )
            for (other,) in work.execute(query, (*bands, passage)).fetchall():
                found = likeness(shingles(text), shingles(_text(work, other)))
                if found >= near.threshold:
                    _join(work, passage, other)
                    # It is dropped for the first that is not dropped itself.
                    work.execute(
                        "UPDATE passages SET same = ?1 WHERE id = ?2 AND same IS NULL "
                        "AND (SELECT same FROM passages WHERE id = ?1) IS NULL",
                        (other, passage),
                    )

    def _record(self, number: int, record: Record, passages: Sequence[int]) -> None:
        """Store a record, its documents and questions."""
        work, source = self.work, self.recipe.source[number]
        kind, gold = _kind_of(record, source)
        dropped = "without_gold" if kind == "multi" and not gold else None
        name = work.insert(
            "INSERT INTO records VALUES (NULL, ?, ?, ?, ?, NULL, ?)",
            (number, record.source, kind, source.split, dropped),
        )
        right = dict.fromkeys((passages[i] for i in gold), 1)
        if gold:
            right[passages[gold[0]]] = 2
        # Repeated documents of one record count once.
        for position, passage in enumerate(dict.fromkeys(passages)):
            part = None
            if kind == "multi" and passage in right:
                part = self._part(passage, record.pair(0)[2])
            work.execute(
                "INSERT INTO docs VALUES (?, ?, ?, ?, ?)",
                (name, position, passage, part or 0, right.get(passage, 0)),
            )
        if dropped:
            _count(work, number, dropped, len(record.questions))
        elif kind != "text":
            hint = "|".join(map(str, sorted(right)))
            for i in range(max(len(record.questions), 1)):
                pair = record.pair(i)
                if lost := self._question(kind, name, pair, passages[0], hint):
                    _count(work, number, lost)

    def _question(
        self, kind: str, record: int, pair: Any, passage: int, hint: str
    ) -> str:
        """Store a question or paraphrase; return why it cannot be, if so."""
        question, target, answers = pair
        if not target.strip():
            return "unanswerable"
        piece, said = None, f"{hint}\n{kind}\n{question}"
        if kind == "paraphrase":
            said += f"\n{target}"
        if kind != "multi":
            pieces = _pieces(self.work, passage)
            if kind == "paraphrase" and len(pieces) > 1:
                return "long_paraphrases"
            part = self._part(passage, (target, *answers))
            if part is None:
                return "unanswerable"
            piece = pieces[part][0]
        gold = json.dumps(answers, ensure_ascii=False)
        done = self.work.execute(
            "INSERT OR IGNORE INTO questions VALUES (NULL, ?, ?, ?, ?, ?, ?)",
            (record, piece, text_key(said.lower()), question, target, gold),
        )
        return "" if done.rowcount else "repeated_questions"

    def _part(self, passage: int, answers: Sequence[str]) -> int | None:
        """Return the piece that holds an answer; None where cuts go through all."""
        pieces = _pieces(self.work, passage)
        if len(pieces) == 1 or any(a.strip(" .").lower() in _YES_NO for a in answers):
            return 0
        text = _text(self.work, passage)
        places = [place for answer in answers for place in _places(text, answer)]
        for part, (_, start, stop) in enumerate(pieces):
            if any(start <= first and last <= stop for first, last in places):
                return part
        return None if places else 0


def _count(work: Work, source: int, name: str, number: int = 1) -> None:
    work.execute(
        "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
        "value = value + excluded.value",
        (source, name, number),
    )


def _kind_of(record: Record, source: Source) -> tuple[str, tuple[int, ...]]:
    """Return a record's kind, and the places of the documents with the answer."""
    if record.kind == "text":
        return "text", ()
    if record.kind == "paraphrase":
        return "paraphrase", (0,)
    if len(record.documents) == 1:
        return "single", (0,)
    every = tuple(range(len(record.documents))) if source.gold == "all" else ()
    return "multi", record.positives or every


def _places(text: str, answer: str) -> list[tuple[int, int]]:
    """Return where an answer stands in a text: as whole words, else anywhere."""
    pattern = r"\s+".join(map(re.escape, answer.split()))
    for form in (rf"(?<!\w){pattern}(?!\w)", pattern) if pattern else ():
        if found := [m.span() for m in re.finditer(form, text, re.IGNORECASE)]:
            return found
    return []


def join_contained(threshold: float, work: Work) -> None:
    """Join the groups of passages that overlap, going on where it stopped.

    They do where one is `contained`, or a piece of it, in the other by `threshold` or
    more. They are found by their `marks`.
    """

    def mark(begin: int, end: int) -> None:
        for passage in range(begin + 1, end + 1):
            rows = [(one, passage) for one in marks(_text(work, passage)).tolist()]
            work.executemany("INSERT INTO marks VALUES (?, ?)", rows)

    # Passages that have a mark in common, the later one first.
    pairing = (
        "CREATE INDEX marks_mark ON marks(mark, passage)",
        "CREATE TABLE pairs AS SELECT DISTINCT a.passage AS passage, b.passage AS "
        "other FROM (SELECT mark FROM marks GROUP BY mark HAVING count(*) BETWEEN 2 "
        f"AND {COMMON}) JOIN marks a USING (mark) JOIN marks b USING (mark) WHERE "
        "b.passage < a.passage ORDER BY 1, 2",
    )

    @functools.lru_cache(CHUNK)
    def runs_of(passage: int) -> Any:
        spans = [(start, stop) for _, start, stop in _pieces(work, passage)]
        return piece_runs(_text(work, passage), spans)

    def compare(begin: int, end: int) -> None:
        query = "SELECT passage, other FROM pairs WHERE rowid BETWEEN ? AND ?"
        for pair in work.execute(query, (begin + 1, end)).fetchall():
            if len(_groups(work, *pair)) > 1:
                (one, *ones), (other, *others) = map(runs_of, pair)
                if max(contained(ones, other), contained(others, one)) >= threshold:
                    _join(work, *pair)

    (last,) = work.row("SELECT coalesce(max(id), 0) FROM passages")
    work.in_steps("overlaps: read", last, CHUNK, mark, "passage")
    work.in_steps("overlaps", 2, 1, lambda i, _: work.execute(pairing[i]), "step")
    (last,) = work.row("SELECT coalesce(max(rowid), 0) FROM pairs")
    work.in_steps("overlaps: compare", last, CHUNK, compare, "pair")


def _pieces(work: Work, passage: int) -> list[tuple[int, int, int]]:
    """Return number, start and stop of the pieces of a passage."""
    query = "SELECT id, start, stop FROM pieces WHERE passage = ? ORDER BY part"
    return work.execute(query, (passage,)).fetchall()


def _text(work: Work, passage: int) -> str:
    return work.row("SELECT text FROM passages WHERE id = ?", (passage,))[0]


def _groups(work: Work, one: int, other: int) -> list[int]:
    query = "SELECT DISTINCT grp FROM passages WHERE id IN (?, ?) ORDER BY grp"
    return [group for (group,) in work.execute(query, (one, other))]


def _join(work: Work, one: int, other: int) -> None:
    first, *others = _groups(work, one, other)
    for group in others:
        work.execute("UPDATE passages SET grp = ? WHERE grp = ?", (first, group))
