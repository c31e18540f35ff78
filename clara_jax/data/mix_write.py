"""The second pass over a mix: which lines its files have, and the files."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.candidates import Ranking
from clara_jax.data.mix_database import HELD_OUT, TRAIN, draw, share
from clara_jax.data.recipe import MOST, STAGES, Recipe
from clara_jax.data.records import clara_fields
from clara_jax.data.work import Work
from clara_jax.errors import ClaraError
from clara_jax.files import writing

AT_ONCE = 1000
"""Lines of a step."""

PAIRS, REPEAT, PARAPHRASED, QUESTION, DOCUMENT = range(5)
"""Kinds of lines: grouped questions of a piece, a piece given back, a paraphrase, one
question with documents, a document of the corpus."""

POOL_TRAIN, POOL_HELD_OUT = -1, -2
"""Pools of pieces that documents are added from; others are the numbers of sources,
their pieces on the side of training."""

_SPARE = 12
"""Pieces that are ranked beyond those that are needed: some are the right ones."""


class File(NamedTuple):
    """A file of a mix: the side of its lines, and the weight that says how many.

    Its questions are of one `source`, or of all; None as `pool` is their source's.
    """

    name: str
    side: int = HELD_OUT
    weight: str = "evaluate"
    source: int | None = None
    pool: int | None = POOL_HELD_OUT


def files_of(recipe: Recipe) -> list[File]:
    """Return the files that are written, in that order."""
    return [
        File("scp.jsonl", TRAIN, "scp"),
        File("instruct.jsonl", TRAIN, "instruct", pool=None),
        File("end_to_end.jsonl", TRAIN, "end_to_end", pool=POOL_TRAIN),
        File("held_out_scp.jsonl", weight="scp"),
        *(
            File(f"held_out/{source.name}.jsonl", source=i)
            for i, source in enumerate(recipe.source)
            if source.evaluate
        ),
        File("corpus.jsonl"),
    ]


def weighted(recipe: Recipe, weight: str) -> str:
    """Return the SQL condition for records of sources that have a weight."""
    numbers = [i for i, source in enumerate(recipe.source) if getattr(source, weight)]
    return f"source IN ({', '.join(map(str, numbers))})"


def plan(recipe: Recipe, work: Work) -> None:
    """List the lines of every file, in their order.

    Raises:
      ClaraError: nothing is left for a stage that has a weight, or to be measured.
    """
    files = files_of(recipe)

    def step(number: int, _: int) -> None:
        if number == len(files):
            index = "CREATE INDEX tasks_place ON tasks(file, place, ref, chunk, copy)"
            work.execute(index)
            _check(recipe, work, files)
            return
        work.executemany(
            "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((number, *line) for line in _tasks(recipe, work, number, files[number])),
        )

    work.in_steps("plan", len(files) + 1, 1, step, "file")


_LINES = {
    QUESTION: "id, 0, source, 1 FROM asked WHERE {whose} AND kind <> 'paraphrase'",
    PARAPHRASED: "id, 0, source, 1 FROM asked WHERE {whose} AND kind = 'paraphrase'",
    PAIRS: "piece, min(id), source, (count(*) + {pairs} - 1) / {pairs} FROM asked "
    "WHERE {whose} AND kind = 'single' GROUP BY piece",
    REPEAT: "pieces.id, min(record), source, 1 FROM kept JOIN pieces USING (passage) "
    "WHERE {whose} AND (same IS NULL OR kind <> 'multi') GROUP BY pieces.id",
}
"""Queries for lines by kind: the id of what they are made of, the first question or
record that names its source, that source, how many lines there are."""


def _tasks(recipe: Recipe, work: Work, number: int, file: File) -> Iterator[tuple]:
    """Yield the lines of a file as rows of the table, without the file's number."""

    def place(kind: int, ref: int, chunk: int = 0, copy: int = 0) -> int:
        return draw("place", recipe.seed, number, kind, ref, chunk, copy)

    if file.name == "corpus.jsonl":
        # Places are from 0 to 2**62, those of what is held out as far below 0.
        for pool, ref in work.execute("SELECT * FROM pools WHERE pool < 0"):
            shift = (pool - POOL_TRAIN) << 62
            yield place(DOCUMENT, ref) + shift, DOCUMENT, ref, 0, 0, -1, None
        return
    most = 1.0 if file.name == "held_out_scp.jsonl" else MOST
    for kind in (PAIRS, PARAPHRASED, REPEAT) if file.weight == "scp" else (QUESTION,):
        weight = "reconstruct" if kind == REPEAT else file.weight
        whose = f"side = {file.side} AND {weighted(recipe, weight)}"
        if file.source is not None:
            whose += f" AND source = {file.source}"
        query = _LINES[kind].format(whose=whose, pairs=recipe.pairs)
        for ref, _, source, chunks in work.execute(f"SELECT {query}"):
            times = min(float(getattr(recipe.source[source], weight)), most)
            chance = draw("copies", recipe.seed, number, kind, ref)
            copies = int(times) + (chance < share(times - int(times)))
            own = source if file.pool is None else file.pool
            pool = own if kind == QUESTION else None
            for chunk, copy in itertools.product(range(chunks), range(copies)):
                order = place(kind, ref, chunk, copy)
                yield order, kind, ref, chunk, copy, source, pool


def _check(recipe: Recipe, work: Work, files: Sequence[File]) -> None:
    """Refuse a mix of which a wanted file has no lines."""
    counts = dict(work.execute("SELECT file, count(*) FROM tasks GROUP BY file"))
    lines = {file.name: counts.get(i, 0) for i, file in enumerate(files)}
    where, more = recipe.file, f"raise held_out ({recipe.held_out:g}), add a source"
    wanted = {name: any(getattr(s, name) for s in recipe.source) for name in STAGES}
    wanted["scp"] |= any(source.reconstruct for source in recipe.source)
    for stage in STAGES:
        if wanted[stage] and not lines[f"{stage}.jsonl"]:
            raise ClaraError(
                f"{where}: no record is left for {stage}.jsonl, which has weights; add "
                f"a source that has some, or set {stage} = 0 in all"
            )
    if wanted["scp"] and recipe.held_out and not lines["held_out_scp.jsonl"]:
        raise ClaraError(
            f"{where}: no record is left for held_out_scp.jsonl; {more} with scp, or "
            "set held_out = 0"
        )
    held = [number for name, number in lines.items() if name.startswith("held_out/")]
    if held and not any(held):
        raise ClaraError(
            f"{where}: there are no held-out questions; {more}, or set evaluate = "
            "false in all"
        )


class Piece(NamedTuple):
    """A piece of a passage: its text, its name in the corpus, the passage's group."""

    text: str
    name: str
    group: int


class Writer:
    """Write the files of a mix into ``out``, going on where it stopped."""

    def __init__(self, recipe: Recipe, work: Work):
        self._recipe, self._work = recipe, work
        self._piece = functools.lru_cache(1 << 14)(self._read_piece)
        self._pool = functools.cache(self._rank_pool)

    def run(self) -> None:
        """Write all that is not written yet."""
        for number, file in enumerate(files_of(self._recipe)):
            query = "SELECT count(*) FROM tasks WHERE file = ?"
            (total,) = self._work.row(query, (number,))
            path = self._work.folder / "out" / file.name
            if total:
                with writing(path):
                    self._write(number, file.name, total, path)

    def _write(self, number: int, name: str, total: int, path: Path) -> None:
        work, done = self._work, self._work.note(name) or 0
        if done < total:
            query = "SELECT DISTINCT pool FROM tasks WHERE file = ? AND pool NOT NULL"
            for (pool,) in work.execute(query, (number,)).fetchall():
                self._pool(pool)
        tasks = work.execute(
            "SELECT kind, ref, chunk, copy, source, pool FROM tasks WHERE file = ? "
            "ORDER BY place, ref, chunk, copy LIMIT -1 OFFSET ?",
            (number, done),
        )

        def lines(begin: int, end: int) -> Iterator[dict[str, Any]]:
            for kind, ref, chunk, *rest in tasks.fetchmany(end - begin):
                if kind == QUESTION:
                    yield self._question(name, ref, *rest)
                elif kind == PAIRS:
                    yield self._pairs(ref, chunk)
                else:
                    yield self._single(kind, ref)

        work.write_lines(path, name, total, AT_ONCE, lines)

    def _single(self, kind: int, ref: int) -> dict[str, Any]:
        """Return a line on one piece, to be repeated or paraphrased."""
        number, target = ref, None
        if kind == PARAPHRASED:
            query = "SELECT piece, target FROM questions WHERE id = ?"
            number, target = self._work.row(query, (ref,))
        piece = self._piece(number)
        if kind == DOCUMENT:
            return {"id": piece.name, "text": piece.text}
        answer = piece.text if target is None else target
        return {"docs": [piece.text], "answers": [answer], "data_type": "paraphrase"}

    def _pairs(self, piece: int, chunk: int) -> dict[str, Any]:
        """Return a line on one piece, with an even share of its questions."""
        rows = self._work.execute(
            "SELECT question, target FROM asked WHERE piece = ? AND "
            f"{weighted(self._recipe, 'scp')} AND kind = 'single' ORDER BY id",
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
        self, name: str, number: int, copy: int, source: int, pool: int
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
                "SELECT pieces.id, gold FROM docs JOIN pieces USING (passage, part) "
                "WHERE record = ? ORDER BY position",
                (record,),
            ).fetchall()
        chosen = [piece for piece, holds in own if holds]
        others = [piece for piece, holds in own if not holds]
        right, count = len(chosen), recipe.candidates
        seed = draw("documents", recipe.seed, name, number, copy)
        random = np.random.default_rng(seed)
        if name == "instruct.jsonl":
            least, most = recipe.distractors
            count = right + int(random.integers(least, most + 1))
        if len(others) > count - right:
            others = [others[i] for i in random.permutation(len(others))]
        groups = {self._piece(piece).group for piece in chosen}
        more = self._others(pool, number, random, count)
        for piece in itertools.chain(others, more):
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

    def _others(
        self, pool: int, question: int, random: np.random.Generator, count: int
    ) -> Iterator[int]:
        """Yield the pieces that BM25 finds for a question, then some by chance."""
        pieces, questions, best = self._pool(pool)
        places = best[int(np.searchsorted(questions, question))]
        yield from pieces[places[places >= 0]].tolist()
        size = min(len(pieces), 4 * count + 16)
        yield from pieces[random.choice(len(pieces), size, replace=False)].tolist()

    def _rank_pool(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a pool's pieces, its questions, and the best places for each."""
        recipe, work = self._recipe, self._work
        query = (
            "SELECT DISTINCT ref, question FROM tasks JOIN questions ON questions.id = "
            "ref WHERE pool = ? ORDER BY ref"
        )
        asked = dict(work.execute(query, (number,)).fetchall())
        query = "SELECT piece FROM pools WHERE pool = ? ORDER BY piece"
        rows = work.execute(query, (number,))
        pieces = np.fromiter((piece for (piece,) in rows), np.int64)

        def read(begin: int, end: int) -> list[str]:
            return [self._read_piece(i).text for i in pieces[begin:end].tolist()]

        most = recipe.candidates
        name = "held out" if number == POOL_HELD_OUT else "end_to_end.jsonl"
        if number >= 0:
            most, name = recipe.distractors[1], f"source {recipe.source[number].name}"
        ranking = Ranking(work, f"BM25 {name}", len(pieces), read)
        best = ranking.rank([*asked.values()], min(most + _SPARE, len(pieces)))
        return pieces, np.asarray([*asked]), best

    def _read_piece(self, number: int) -> Piece:
        text, start, stop, passage, part, group, parts = self._work.row(
            "SELECT text, start, stop, passage, part, grp, (SELECT count(*) FROM "
            "pieces p WHERE p.passage = passages.id) FROM pieces JOIN passages ON "
            "passages.id = passage WHERE pieces.id = ?",
            (number,),
        )
        name = f"p{passage}#{part + 1}" if parts > 1 else f"p{passage}"
        return Piece(text[start:stop], name, group)
