"""Which side every passage is on, and what lines the files of a mix will have.

The side of a passage, and of its group, all that are nearly the same or overlap it, is
that of the first rule that applies:

1. it is in a source with ``split = "held_out"``: held out;
2. it is in one with ``split = "train"`` (alone, or as a document that holds an answer),
   or its group is larger than all that is to be held out: training;
3. a held-out record has it among its documents: held out;
4. questions are asked about it, or it comes first among the documents that hold the
   answer to one: by its hash;
5. a training record has it among its documents: training;
6. by its hash.

A record with several documents is on the side of the first that holds its answer. It
loses documents of the other side, and is dropped where one of them holds the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clara_jax.data.mix_work import (
    HELD_OUT,
    MULTI,
    PARAPHRASE,
    SINGLE,
    TEXT,
    TRAIN,
    Work,
    draw,
    share,
)
from clara_jax.data.progress import Progress
from clara_jax.data.recipe import SPLITS, STAGES, Recipe
from clara_jax.errors import ClaraError

PAIRS, REPEAT, PARAPHRASED, QUESTION, DOCUMENT = range(5)
"""Kinds of lines: grouped questions of a piece, a piece given back, a paraphrase, one
question with documents, a document of the corpus."""

POOL_TRAIN, POOL_HELD_OUT = -1, -2
"""Pools of pieces that documents are added from; others are the numbers of sources,
their pieces on the side of training."""

_BY_HASH, _TRAIN, _HELD = map(SPLITS.index, ("hash", "train", "held_out"))
_ALONE = f"kind IN ({SINGLE}, {PARAPHRASE}, {TEXT})"


def files_of(recipe: Recipe) -> list[str]:
    """Return the names of the files that are written, in that order."""
    held = [f"held_out/{s.name}.jsonl" for s in recipe.source if s.evaluate]
    stages = [f"{stage}.jsonl" for stage in STAGES]
    return [*stages, "held_out_scp.jsonl", *held, "corpus.jsonl"]


def split(recipe: Recipe, work: Work, progress: Progress) -> None:
    """Give every passage and record its side, and drop what cannot be used.

    Raises:
      ClaraError: a passage is on both sides by the recipe.
    """
    if work.note("split"):
        return
    with work.step(), progress(desc="split", total=3, unit="step") as bar:
        _refuse_both(recipe, work)
        bar.update(1)
        _sides(recipe, work)
        bar.update(1)
        _drop(work)
        bar.update(1)
        work.set_note("split", True)


def _refuse_both(recipe: Recipe, work: Work) -> None:
    found = work.row(
        "SELECT t.source, t.place, h.source, h.place FROM docs dt "
        f"JOIN records t ON t.id = dt.record AND t.split = {_TRAIN} AND t.{_ALONE} "
        "JOIN docs dh ON dh.passage = dt.passage "
        f"JOIN records h ON h.id = dh.record AND h.split = {_HELD} AND h.{_ALONE} "
        "ORDER BY t.id, h.id LIMIT 1"
    )
    if found:
        train, place, held, other = found
        raise ClaraError(
            f"{place} (source '{recipe.source[train].name}', split train): its passage "
            f"is also {other} (source '{recipe.source[held].name}', split held_out); "
            "take it out of one of them"
        )


def _sides(recipe: Recipe, work: Work) -> None:
    limit = share(recipe.held_out)
    (total,) = work.row("SELECT count(*) FROM passages")
    most = max(recipe.held_out * total, 1) if recipe.held_out else total
    work.do("DROP TABLE IF EXISTS groups")
    work.do(
        "CREATE TABLE groups AS SELECT grp AS id, "
        f"max(split = {_TRAIN} AND ({_ALONE} OR gold > 0)) OR "
        f"count(DISTINCT passage) > {most} AS train, "
        f"max(split = {_HELD}) AS held, "
        f"max(kind IN ({SINGLE}, {PARAPHRASE}) OR gold = 2) AS asked, "
        "0 AS side, 0 AS held_beside, 0 AS train_beside "
        "FROM passages JOIN docs ON passage = passages.id "
        "JOIN records ON records.id = record WHERE dropped IS NULL GROUP BY grp"
    )
    work.do("CREATE UNIQUE INDEX groups_id ON groups(id)")
    work.do(
        "UPDATE groups SET side = CASE WHEN held THEN 1 WHEN train THEN 0 ELSE "
        "(SELECT draw FROM passages WHERE passages.id = groups.id) < ? END",
        (limit,),
    )
    group = (
        "(SELECT groups.side FROM docs JOIN passages ON passages.id = passage JOIN "
        "groups ON groups.id = grp WHERE record = records.id {})"
    )
    by_first = group.format("AND gold = 2")
    work.do(
        f"UPDATE records SET side = CASE split WHEN {_TRAIN} THEN {TRAIN} WHEN {_HELD} "
        f"THEN {HELD_OUT} ELSE {by_first} END WHERE kind = {MULTI} AND dropped IS NULL"
    )
    for name, side in (("held_beside", HELD_OUT), ("train_beside", TRAIN)):
        work.do(
            f"UPDATE groups SET {name} = 1 WHERE id IN (SELECT grp FROM records "
            "JOIN docs ON record = records.id JOIN passages ON passages.id = passage "
            f"WHERE kind = {MULTI} AND records.side = {side} AND dropped IS NULL)"
        )
    work.do(
        "UPDATE groups SET side = CASE WHEN held THEN 1 WHEN train THEN 0 "
        "WHEN held_beside THEN 1 WHEN asked THEN side WHEN train_beside THEN 0 "
        "ELSE side END"
    )
    work.do(
        "UPDATE passages SET side = (SELECT side FROM groups WHERE groups.id = grp)"
    )
    alone = group.format("LIMIT 1")
    work.do(
        f"UPDATE records SET side = CASE split WHEN {_TRAIN} THEN {TRAIN} WHEN {_HELD} "
        f"THEN {HELD_OUT} ELSE {alone} END WHERE {_ALONE} AND dropped IS NULL"
    )


def _drop(work: Work) -> None:
    # A near-duplicate that the recipe holds out stays, unless it is that of another.
    work.do(
        "UPDATE records SET dropped = 'near_duplicates' WHERE dropped IS NULL AND "
        f"{_ALONE} AND EXISTS (SELECT 1 FROM docs JOIN passages ON passages.id = "
        "passage WHERE record = records.id AND same IS NOT NULL AND "
        f"(records.split <> {_HELD} OR EXISTS (SELECT 1 FROM docs d JOIN records r ON "
        f"r.id = d.record WHERE d.passage = same AND r.split = {_HELD})))"
    )
    other = (
        "EXISTS (SELECT 1 FROM docs JOIN passages ON passages.id = passage WHERE "
        "record = records.id AND passages.side <> records.side {})"
    )
    work.do(
        "UPDATE records SET dropped = 'split_conflicts' WHERE dropped IS NULL AND "
        f"({_ALONE} AND {other.format('')} OR {other.format('AND gold > 0')})"
    )
    for name in ("near_duplicates", "split_conflicts"):
        rows = work.do(
            "SELECT source, count(*) FROM records WHERE dropped = ? GROUP BY source",
            (name,),
        ).fetchall()
        for source, number in rows:
            work.count(source, name, number)
    lost = work.do(
        "SELECT source, count(*) FROM records JOIN docs ON record = records.id JOIN "
        "passages ON passages.id = passage WHERE dropped IS NULL AND "
        "passages.side <> records.side GROUP BY source"
    ).fetchall()
    for source, number in lost:
        work.count(source, "lost_distractors", number)
    # What is left of the documents is what the files are made of.
    work.do(
        "DELETE FROM docs WHERE EXISTS (SELECT 1 FROM records, passages WHERE "
        "records.id = record AND passages.id = passage AND dropped IS NULL AND "
        "passages.side <> records.side)"
    )


def plan(recipe: Recipe, work: Work, progress: Progress) -> None:
    """List the lines of every file, in their order.

    Raises:
      ClaraError: nothing is left for a stage that has a weight, or to be measured.
    """
    if work.note("planned"):
        return
    names = files_of(recipe)
    with work.step(), progress(desc="plan", total=len(names) + 1, unit="file") as bar:
        for name in ("tasks", "pools", "weights", "numbers", "files"):
            work.do(f"DROP TABLE IF EXISTS {name}")
        work.do(
            "CREATE TABLE tasks(file INTEGER, place INTEGER, kind INTEGER, ref INTEGER,"
            " chunk INTEGER, copy INTEGER, source INTEGER)"
        )
        work.do("CREATE TABLE weights(source INTEGER PRIMARY KEY, scp, instruct, "
                "end_to_end, reconstruct, evaluate)")  # fmt: skip
        work.do_many(
            "INSERT INTO weights VALUES (?, ?, ?, ?, ?, ?)",
            [
                (i, s.scp, s.instruct, s.end_to_end, s.reconstruct, s.evaluate)
                for i, s in enumerate(recipe.source)
            ],
        )
        _functions(recipe, work)
        _Plan(recipe, work).run(bar)
        work.do("CREATE INDEX tasks_place ON tasks(file, place, ref, chunk, copy)")
        work.do(
            "CREATE TABLE files(file INTEGER PRIMARY KEY, done INTEGER, size INTEGER)"
        )
        work.do_many(
            "INSERT INTO files VALUES (?, 0, 0)",
            [(i,) for i in range(len(names))],
        )
        _check(recipe, work)
        bar.update(1)
        work.set_note("planned", True)


def _functions(recipe: Recipe, work: Work) -> None:
    def copies(weight: float, file: int, kind: int, ref: int) -> int:
        whole = int(weight)
        chosen = draw("copies", recipe.seed, file, kind, ref) < share(weight - whole)
        return whole + chosen

    def place(file: int, kind: int, ref: int, chunk: int, copy: int) -> int:
        return draw("place", recipe.seed, file, kind, ref, chunk, copy)

    work.function("copies", 4, copies)
    work.function("place", 5, place)


class _Plan:
    """Fills the table of tasks, and the pools."""

    def __init__(self, recipe: Recipe, work: Work):
        self._recipe, self._work = recipe, work
        self._files = {name: i for i, name in enumerate(files_of(recipe))}

    def run(self, bar: Any) -> None:
        """List everything; the bar goes on by one a file."""
        work = self._work
        work.do("CREATE TABLE numbers(i INTEGER PRIMARY KEY)")
        most = max(
            max(s.scp, s.instruct, s.end_to_end, s.reconstruct)
            for s in self._recipe.source
        )
        (pairs,) = work.row(
            "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM questions "
            "GROUP BY piece)"
        )
        count = int(max(most, pairs)) + 2
        work.do_many("INSERT INTO numbers VALUES (?)", ((i,) for i in range(count)))
        for file, side, cap in (
            ("scp.jsonl", TRAIN, most),
            ("held_out_scp.jsonl", HELD_OUT, 1.0),
        ):
            self._first_stage(self._files[file], side, cap)
            bar.update(1)
        for stage in ("instruct", "end_to_end"):
            self._questions(self._files[f"{stage}.jsonl"], TRAIN, stage)
            bar.update(1)
        for i, source in enumerate(self._recipe.source):
            if source.evaluate:
                file = self._files[f"held_out/{source.name}.jsonl"]
                self._questions(file, HELD_OUT, "evaluate", f"AND source = {i}")
                bar.update(1)
        self._pools()
        # Places are from 0 to 2**62, those of what is held out as far below 0.
        file = self._files["corpus.jsonl"]
        work.do(
            f"INSERT INTO tasks SELECT {file}, place({file}, {DOCUMENT}, piece, 0, 0) "
            f"+ (pool - {POOL_TRAIN}) * (1 << 62), {DOCUMENT}, piece, 0, 0, -1 FROM "
            "pools WHERE pool < 0"
        )
        bar.update(1)

    def _first_stage(self, file: int, side: int, cap: float) -> None:
        kept = f"dropped IS NULL AND records.side = {side}"
        size = self._recipe.pairs
        self._lines(
            file,
            PAIRS,
            "SELECT piece AS ref, min(questions.id), records.source AS source, scp AS "
            f"weight, (count(*) + {size - 1}) / {size} AS chunks FROM questions JOIN "
            "records ON records.id = record JOIN weights USING (source) WHERE scp > 0 "
            f"AND kind = {SINGLE} AND {kept} GROUP BY piece",
            cap,
        )
        self._lines(
            file,
            PARAPHRASED,
            "SELECT questions.id AS ref, 0, source, scp AS weight, 1 AS chunks FROM "
            "questions JOIN records ON records.id = record JOIN weights USING (source) "
            f"WHERE scp > 0 AND kind = {PARAPHRASE} AND {kept}",
            cap,
        )
        self._lines(
            file,
            REPEAT,
            "SELECT pieces.id AS ref, min(records.id), source, reconstruct AS weight, "
            "1 AS chunks FROM records JOIN weights USING (source) JOIN docs ON record "
            "= records.id JOIN passages ON passages.id = docs.passage JOIN pieces ON "
            "pieces.passage = passages.id WHERE reconstruct > 0 AND "
            f"(same IS NULL OR {_ALONE}) AND {kept} GROUP BY pieces.id",
            cap,
        )

    def _questions(self, file: int, side: int, weight: str, more: str = "") -> None:
        self._lines(
            file,
            QUESTION,
            f"SELECT questions.id AS ref, 0, source, {weight} AS weight, 1 AS chunks "
            "FROM questions JOIN records ON records.id = record JOIN weights USING "
            f"(source) WHERE {weight} > 0 AND kind IN ({SINGLE}, {MULTI}) AND "
            f"dropped IS NULL AND records.side = {side} {more}",
            float("inf"),
        )

    def _lines(self, file: int, kind: int, query: str, cap: float) -> None:
        """Add each row of a query `weight` times, in `chunks` lines."""
        times = f"copies(1.0 * min(weight, ?), {file}, {kind}, ref)"
        self._work.do(
            f"INSERT INTO tasks SELECT {file}, place({file}, {kind}, ref, c.i, n.i), "
            f"{kind}, ref, c.i, n.i, source FROM (SELECT *, {times} AS times FROM "
            f"({query})) JOIN numbers n ON n.i < times JOIN numbers c ON c.i < chunks",
            (min(cap, 1e6),),
        )

    def _pools(self) -> None:
        """Pieces of all documents that the kept records have, by side and by source."""
        work = self._work
        work.do(
            "CREATE TABLE pools(pool INTEGER, piece INTEGER, PRIMARY KEY(pool, piece)) "
            "WITHOUT ROWID"
        )
        query = (
            "INSERT INTO pools SELECT DISTINCT {}, pieces.id FROM records JOIN docs ON "
            "record = records.id JOIN pieces ON pieces.passage = docs.passage WHERE "
            "dropped IS NULL AND side = {}"
        )
        work.do(query.format(POOL_TRAIN, TRAIN))
        work.do(query.format(POOL_HELD_OUT, HELD_OUT))
        work.do(query.format("source", TRAIN))


def _check(recipe: Recipe, work: Work) -> None:
    names = files_of(recipe)
    counts = dict(work.do("SELECT file, count(*) FROM tasks GROUP BY file").fetchall())
    where = Path(recipe.file)
    first = any(s.scp > 0 or s.reconstruct > 0 for s in recipe.source)
    for i, stage in enumerate(STAGES):
        weighted = any(getattr(s, stage) > 0 for s in recipe.source)
        if (first if stage == "scp" else weighted) and not counts.get(i):
            raise ClaraError(
                f"{where}: no record is left for {stage}.jsonl, which has weights; add "
                f"a source that has some, or set {stage} = 0 in all"
            )
    if first and recipe.held_out and not counts.get(names.index("held_out_scp.jsonl")):
        raise ClaraError(
            f"{where}: no record is left for held_out_scp.jsonl; raise held_out "
            f"({recipe.held_out:g}), add a source with scp, or set held_out = 0"
        )
    held = [i for i, name in enumerate(names) if name.startswith("held_out/")]
    if held and not any(counts.get(i) for i in held):
        raise ClaraError(
            f"{where}: there are no held-out questions; raise held_out "
            f"({recipe.held_out:g}), add a source, or set evaluate = false in all"
        )
