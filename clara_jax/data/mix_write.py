"""The second pass over a mix: the files' lines, out of the work database."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.mix_split import (
    DOCUMENT,
    PAIRS,
    PARAPHRASED,
    POOL_HELD_OUT,
    POOL_TRAIN,
    REPEAT,
    files_of,
)
from clara_jax.data.mix_work import SINGLE, Work, draw
from clara_jax.data.progress import Progress
from clara_jax.data.ranking import rank
from clara_jax.data.recipe import Recipe
from clara_jax.files import write_error

AT_ONCE = 1000
"""Lines of a step."""

BLOCK = 200_000
"""Pieces that questions are compared with at a time."""

_SPARE = 12
"""Pieces that are ranked beyond those that are needed: some are the right ones."""


class Piece(NamedTuple):
    """A piece of a passage: its text, name in the corpus, and group of the same."""

    text: str
    name: str
    group: int


class Question(NamedTuple):
    """A question with its own documents: number, texts, whether each is right."""

    number: int
    text: str
    target: str
    gold: list[str]
    own: list[int]
    right: list[bool]


class Pieces:
    """Pieces by number, read from the work database."""

    def __init__(self, work: Work):
        self._work = work
        self.get = functools.lru_cache(1 << 14)(self._get)

    def _get(self, number: int) -> Piece:
        text, start, stop, passage, part, group, parts = self._work.row(
            "SELECT text, start, stop, passage, part, grp, (SELECT count(*) FROM "
            "pieces p WHERE p.passage = passages.id) FROM pieces JOIN passages ON "
            "passages.id = passage WHERE pieces.id = ?",
            (number,),
        )
        name = f"p{passage}#{part + 1}" if parts > 1 else f"p{passage}"
        return Piece(text[start:stop], name, group)


class Pool:
    """Pieces that documents are added from, those that are hard to tell apart first.

    Args:
      work: the database.
      number: which pool, see ``mix_split``.
      questions: numbers of the questions that it serves, rising.
      most: documents that are added at most.
      folder: of the ranking.
      progress: makes its bar.
      name: of the bar.
    """

    def __init__(
        self,
        work: Work,
        number: int,
        questions: Sequence[int],
        most: int,
        folder: Path,
        progress: Progress,
        name: str,
    ):
        self._questions = np.asarray(questions, np.int64)
        rows = work.do(
            "SELECT piece FROM pools WHERE pool = ? ORDER BY piece", (number,)
        )
        self.pieces = np.fromiter((piece for (piece,) in rows), np.int64)
        texts = [
            work.row("SELECT question FROM questions WHERE id = ?", (int(q),))[0]
            for q in questions
        ]
        blocks = _PoolBlocks(work, self.pieces)
        depth = min(most + _SPARE, len(self.pieces))
        _, self._best = rank(texts, blocks, depth, folder, progress, name)

    def hard(self, question: int) -> Iterator[int]:
        """Pieces that share most with a question, best first; not very many."""
        row = int(np.searchsorted(self._questions, question))
        return (piece for piece in self._best[row].tolist() if piece >= 0)

    def others(self, random: np.random.Generator, count: int) -> Iterator[int]:
        """Pieces by chance, some more than `count` if there are."""
        size = min(len(self.pieces), 4 * count + 16)
        places = random.choice(len(self.pieces), size, replace=False)
        yield from self.pieces[places].tolist()


class _PoolBlocks:
    def __init__(self, work: Work, pieces: np.ndarray):
        self._get, self._pieces = Pieces(work).get.__wrapped__, pieces

    def __len__(self) -> int:
        return -(-len(self._pieces) // BLOCK)

    def __getitem__(self, index: int) -> tuple[list[str], np.ndarray]:
        numbers = self._pieces[index * BLOCK : (index + 1) * BLOCK]
        return [self._get(int(number)).text for number in numbers], numbers


class Writer:
    """Writes the files of a mix into a folder, going on where it stopped.

    Args:
      recipe: what is mixed.
      work: the database, with its plan.
      folder: where files go.
      scratch: where rankings go.
      progress: makes bars.
    """

    def __init__(
        self,
        recipe: Recipe,
        work: Work,
        folder: Path,
        scratch: Path,
        progress: Progress,
    ):
        self._recipe, self._work = recipe, work
        self._folder, self._scratch, self._progress = folder, scratch, progress
        self._pieces = Pieces(work)
        self._pools: dict[int, Pool] = {}

    def run(self) -> None:
        """Write all that is not written yet."""
        for number, name in enumerate(files_of(self._recipe)):
            try:
                self._write(number, name)
            except OSError as error:
                raise write_error(self._folder / name, error) from error

    def _write(self, number: int, name: str) -> None:
        work, path = self._work, self._folder / name
        (total,) = work.row("SELECT count(*) FROM tasks WHERE file = ?", (number,))
        done, size = work.row("SELECT done, size FROM files WHERE file = ?", (number,))
        if not total:
            return  # such as a source without held-out questions
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(size)
        if done == total:
            return
        if POOL_HELD_OUT not in self._pools:
            self._pools.clear()
        with (
            path.open("ab") as file,
            self._progress(desc=name, total=total, initial=done, unit="rec") as bar,
        ):
            left = work.do(
                "SELECT kind, ref, chunk, copy, source FROM tasks WHERE file = ? "
                "ORDER BY place, ref, chunk, copy LIMIT -1 OFFSET ?",
                (number, done),
            )
            while tasks := left.fetchmany(AT_ONCE):
                lines = [
                    json.dumps(self._line(name, *task), ensure_ascii=False)
                    for task in tasks
                ]
                file.write("".join(f"{line}\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                done += len(tasks)
                with work.step():
                    work.do(
                        "UPDATE files SET done = ?, size = ? WHERE file = ?",
                        (done, file.tell(), number),
                    )
                bar.update(len(tasks))

    def _line(
        self, name: str, kind: int, ref: int, chunk: int, copy: int, source: int
    ) -> dict[str, Any]:
        if kind == PAIRS:
            return self._pairs(ref, chunk)
        if kind == REPEAT:
            text = self._pieces.get(ref).text
            return {"docs": [text], "answers": [text], "data_type": "paraphrase"}
        if kind == PARAPHRASED:
            piece, target = self._work.row(
                "SELECT piece, target FROM questions WHERE id = ?", (ref,)
            )
            text = self._pieces.get(piece).text
            return {"docs": [text], "answers": [target], "data_type": "paraphrase"}
        if kind == DOCUMENT:
            piece = self._pieces.get(ref)
            return {"id": piece.name, "text": piece.text}
        return self._question(name, ref, copy, source)

    def _pairs(self, piece: int, chunk: int) -> dict[str, Any]:
        """A piece with its share of its questions, as even as can be."""
        rows = self._work.do(
            "SELECT question, target FROM questions JOIN records ON records.id = record"
            f" JOIN weights USING (source) WHERE piece = ? AND scp > 0 AND kind = "
            f"{SINGLE} AND dropped IS NULL ORDER BY questions.id",
            (piece,),
        ).fetchall()
        chunks = -(-len(rows) // self._recipe.pairs)
        begin = chunk * len(rows) // chunks
        part = rows[begin : (chunk + 1) * len(rows) // chunks]
        return {
            "docs": [self._pieces.get(piece).text],
            "question": [question for question, _ in part],
            "answers": [target for _, target in part],
            "data_type": "qa",
        }

    def _question(
        self, name: str, number: int, copy: int, source: int
    ) -> dict[str, Any]:
        recipe = self._recipe
        question = self._read(number)
        seed = draw("documents", recipe.seed, name, number, copy)
        random = np.random.default_rng(seed)
        if name == "instruct.jsonl":
            pool = self._pool(name, source, f"AND source = {source}")
            least, most = recipe.distractors
            count = sum(question.right) + int(random.integers(least, most + 1))
        else:
            side = POOL_TRAIN if name == "end_to_end.jsonl" else POOL_HELD_OUT
            pool = self._pool(name, side)
            count = recipe.candidates
        chosen = self._choose(question, pool, count, random)
        order = random.permutation(len(chosen)).tolist()
        right = sum(question.right)
        fields: dict[str, Any] = {
            "id": f"{recipe.source[source].name}-{number}",
            "docs": [self._pieces.get(chosen[i]).text for i in order],
            "question": question.text,
        }
        if question.gold[:1] == [question.target]:
            fields["answers"] = question.gold
        else:
            fields |= {"answers": [question.target], "gold_answer": question.gold}
        places = [place for place, i in enumerate(order) if i < right]
        return {**fields, "data_type": "qa", "pos_index": places}

    def _choose(
        self, question: Question, pool: Pool, count: int, random: np.random.Generator
    ) -> list[int]:
        """The right pieces first, then own ones, hard ones and any."""
        pairs = list(zip(question.own, question.right, strict=True))
        chosen = [piece for piece, right in pairs if right]
        own = [piece for piece, right in pairs if not right]
        if len(own) > count - len(chosen):
            own = [own[i] for i in random.permutation(len(own))]
        groups = {self._pieces.get(piece).group for piece in chosen}
        for more in (iter(own), pool.hard(question.number), pool.others(random, count)):
            for piece in more:
                if len(chosen) >= count:
                    return chosen
                group = self._pieces.get(piece).group
                if group not in groups:
                    groups.add(group)
                    chosen.append(piece)
        return chosen

    def _read(self, number: int) -> Question:
        text, target, gold, record, piece = self._work.row(
            "SELECT question, target, gold, record, piece FROM questions WHERE id = ?",
            (number,),
        )
        if piece is not None:
            return Question(number, text, target, json.loads(gold), [piece], [True])
        rows = self._work.do(
            "SELECT pieces.id, gold > 0 FROM docs JOIN pieces ON pieces.passage = "
            "docs.passage AND pieces.part = docs.part WHERE record = ? ORDER BY "
            "position",
            (record,),
        ).fetchall()
        own, right = [piece for piece, _ in rows], [bool(gold) for _, gold in rows]
        return Question(number, text, target, json.loads(gold), own, right)

    def _pool(self, name: str, number: int, more: str = "") -> Pool:
        """The pool of a kind of file; its ranking is made when it is first needed."""
        if number not in self._pools:
            recipe = self._recipe
            held = number == POOL_HELD_OUT
            files = [
                i
                for i, file in enumerate(files_of(recipe))
                if (file.startswith("held_out/") if held else file == name)
            ]
            marks = ", ".join(map(str, files))
            rows = self._work.do(
                f"SELECT DISTINCT ref FROM tasks WHERE file IN ({marks}) {more} "
                "ORDER BY ref"
            ).fetchall()
            label = recipe.source[number].name if number >= 0 else name
            self._pools[number] = Pool(
                self._work,
                number,
                [ref for (ref,) in rows],
                recipe.distractors[1] if number >= 0 else recipe.candidates,
                self._scratch / f"rank{number}",
                self._progress,
                f"BM25 {'held out' if held else label}",
            )
        return self._pools[number]
