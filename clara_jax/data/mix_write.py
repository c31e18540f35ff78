"""The second pass over a mix: the files' lines, out of the work database."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.candidates import Texts, rank
from clara_jax.data.mix_database import SINGLE, Work, draw
from clara_jax.data.mix_split import (
    DOCUMENT,
    PAIRS,
    PARAPHRASED,
    POOL_HELD_OUT,
    POOL_TRAIN,
    REPEAT,
    files_of,
    weighted,
)
from clara_jax.data.recipe import Recipe
from clara_jax.data.records import clara_fields
from clara_jax.data.resuming import Progress, append_lines
from clara_jax.files import write_error

AT_ONCE = 1000
"""Lines of a step."""

_SPARE = 12
"""Pieces that are ranked beyond those that are needed: some are the right ones."""


class Piece(NamedTuple):
    """A piece of a passage: its text, its name in the corpus, the passage's group."""

    text: str
    name: str
    group: int


class Pool(NamedTuple):
    """Pieces that documents are added from.

    Attributes:
      pieces: their numbers.
      questions: numbers of the questions that it serves, rising.
      best: places of the best pieces for each question, by BM25.
    """

    pieces: np.ndarray
    questions: np.ndarray
    best: np.ndarray

    def hard(self, question: int) -> Iterator[int]:
        """Pieces that share most with a question, best first; not very many."""
        places = self.best[int(np.searchsorted(self.questions, question))]
        yield from self.pieces[places[places >= 0]].tolist()

    def others(self, random: np.random.Generator, count: int) -> Iterator[int]:
        """Pieces by chance, some more than `count` if there are."""
        size = min(len(self.pieces), 4 * count + 16)
        places = random.choice(len(self.pieces), size, replace=False)
        yield from self.pieces[places].tolist()


class Writer:
    """Writes the files of a mix, going on where it stopped.

    Args:
      recipe: what is mixed.
      work: the database, with its plan.
      scratch: folder of rankings, and of the folder ``out`` of the files.
      progress: makes bars.
    """

    def __init__(self, recipe: Recipe, work: Work, scratch: Path, progress: Progress):
        self._recipe, self._work = recipe, work
        self._scratch, self._progress = scratch, progress
        self._piece = functools.lru_cache(1 << 14)(self._read_piece)
        self._pools: dict[int, Pool] = {}

    def run(self) -> None:
        """Write all that is not written yet."""
        for number, name in enumerate(files_of(self._recipe)):
            path = self._scratch / "out" / name
            try:
                self._write(number, name, path)
            except OSError as error:
                raise write_error(path, error) from error

    def _write(self, number: int, name: str, path: Path) -> None:
        work = self._work
        (total,) = work.row("SELECT count(*) FROM tasks WHERE file = ?", (number,))
        done, size = work.row("SELECT done, size FROM files WHERE file = ?", (number,))
        if not total:
            return  # such as a source without held-out questions
        if POOL_HELD_OUT not in self._pools:
            self._pools.clear()
        tasks = work.execute(
            "SELECT kind, ref, chunk, copy, source FROM tasks WHERE file = ? "
            "ORDER BY place, ref, chunk, copy LIMIT -1 OFFSET ?",
            (number, done),
        )

        def steps() -> Iterator[list[dict[str, Any]]]:
            while rows := tasks.fetchmany(AT_ONCE):
                yield [self._line(name, *row) for row in rows]

        def save(lines: int, size: int) -> None:
            with work.step():
                work.execute(
                    "UPDATE files SET done = done + ?, size = ? WHERE file = ?",
                    (lines, size, number),
                )

        with self._progress(desc=name, total=total, initial=done, unit="rec") as bar:
            append_lines(path, size, steps(), save, bar)

    def _line(
        self, name: str, kind: int, ref: int, chunk: int, copy: int, source: int
    ) -> dict[str, Any]:
        if kind == PAIRS:
            return self._pairs(ref, chunk)
        if kind == DOCUMENT:
            piece = self._piece(ref)
            return {"id": piece.name, "text": piece.text}
        if kind == REPEAT:
            text = target = self._piece(ref).text
        elif kind == PARAPHRASED:
            query = "SELECT piece, target FROM questions WHERE id = ?"
            piece, target = self._work.row(query, (ref,))
            text = self._piece(piece).text
        else:
            return self._question(name, ref, copy, source)
        return {"docs": [text], "answers": [target], "data_type": "paraphrase"}

    def _pairs(self, piece: int, chunk: int) -> dict[str, Any]:
        """A piece with its share of its questions, as even as can be."""
        rows = self._work.execute(
            "SELECT question, target FROM asked WHERE piece = ? AND "
            f"{weighted(self._recipe, 'scp')} AND kind = {SINGLE} ORDER BY id",
            (piece,),
        ).fetchall()
        chunks = -(-len(rows) // self._recipe.pairs)
        begin, end = (i * len(rows) // chunks for i in (chunk, chunk + 1))
        return {
            "docs": [self._piece(piece).text],
            "question": [question for question, _ in rows[begin:end]],
            "answers": [target for _, target in rows[begin:end]],
            "data_type": "qa",
        }

    def _question(
        self, name: str, number: int, copy: int, source: int
    ) -> dict[str, Any]:
        """A question with the right pieces, its own other ones, hard ones and any."""
        recipe = self._recipe
        text, target, gold, record, piece = self._work.row(
            "SELECT question, target, gold, record, piece FROM questions WHERE id = ?",
            (number,),
        )
        own = [(piece, 1)]
        if piece is None:
            own = self._work.execute(
                "SELECT pieces.id, gold FROM docs JOIN pieces ON pieces.passage = "
                "docs.passage AND pieces.part = docs.part WHERE record = ? ORDER BY "
                "position",
                (record,),
            ).fetchall()
        chosen = [piece for piece, holds in own if holds]
        others = [piece for piece, holds in own if not holds]
        right = len(chosen)
        seed = draw("documents", recipe.seed, name, number, copy)
        random = np.random.default_rng(seed)
        if name == "instruct.jsonl":
            pool = self._pool(name, source)
            least, most = recipe.distractors
            count = right + int(random.integers(least, most + 1))
        else:
            side = POOL_TRAIN if name == "end_to_end.jsonl" else POOL_HELD_OUT
            pool, count = self._pool(name, side), recipe.candidates
        if len(others) > count - right:
            others = [others[i] for i in random.permutation(len(others))]
        groups = {self._piece(piece).group for piece in chosen}
        for piece in itertools.chain(
            others, pool.hard(number), pool.others(random, count)
        ):
            if len(chosen) >= count:
                break
            group = self._piece(piece).group
            if group not in groups:
                groups.add(group)
                chosen.append(piece)
        order = random.permutation(len(chosen)).tolist()
        fields = clara_fields(
            [self._piece(chosen[i]).text for i in order],
            text,
            target,
            json.loads(gold),
            [place for place, i in enumerate(order) if i < right],
        )
        return {"id": f"{recipe.source[source].name}-{number}", **fields}

    def _pool(self, name: str, number: int) -> Pool:
        """The pool of a kind of file; its ranking is made when it is first needed."""
        if number in self._pools:
            return self._pools[number]
        recipe, work, held = self._recipe, self._work, number == POOL_HELD_OUT
        files = [
            str(i)
            for i, file in enumerate(files_of(recipe))
            if (file.startswith("held_out/") if held else file == name)
        ]
        more = f"AND source = {number}" if number >= 0 else ""
        asked = work.execute(
            "SELECT DISTINCT ref, question FROM tasks JOIN questions ON questions.id = "
            f"ref WHERE file IN ({', '.join(files)}) {more} ORDER BY ref"
        ).fetchall()
        query = "SELECT piece FROM pools WHERE pool = ? ORDER BY piece"
        rows = work.execute(query, (number,))
        pieces = np.fromiter((piece for (piece,) in rows), np.int64)

        def read(begin: int, end: int) -> list[str]:
            return [self._read_piece(i).text for i in pieces[begin:end].tolist()]

        most = recipe.distractors[1] if number >= 0 else recipe.candidates
        label = recipe.source[number].name if number >= 0 else name
        best = rank(
            [question for _, question in asked],
            Texts(len(pieces), read),
            min(most + _SPARE, len(pieces)),
            self._scratch / f"rank{number}",
            self._progress,
            f"BM25 {'held out' if held else label}",
        )
        questions = np.asarray([ref for ref, _ in asked])
        return self._pools.setdefault(number, Pool(pieces, questions, best))

    def _read_piece(self, number: int) -> Piece:
        text, start, stop, passage, part, group, parts = self._work.row(
            "SELECT text, start, stop, passage, part, grp, (SELECT count(*) FROM "
            "pieces p WHERE p.passage = passages.id) FROM pieces JOIN passages ON "
            "passages.id = passage WHERE pieces.id = ?",
            (number,),
        )
        name = f"p{passage}#{part + 1}" if parts > 1 else f"p{passage}"
        return Piece(text[start:stop], name, group)
