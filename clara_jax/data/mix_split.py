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

import itertools
from collections.abc import Iterator

from clara_jax.data.mix_database import (
    HELD_OUT,
    MULTI,
    PARAPHRASE,
    SINGLE,
    SPLITS,
    TRAIN,
    Work,
    draw,
    share,
)
from clara_jax.data.recipe import MOST, STAGES, Recipe
from clara_jax.data.resuming import Progress
from clara_jax.errors import ClaraError

PAIRS, REPEAT, PARAPHRASED, QUESTION, DOCUMENT = range(5)
"""Kinds of lines: grouped questions of a piece, a piece given back, a paraphrase, one
question with documents, a document of the corpus."""

POOL_TRAIN, POOL_HELD_OUT = -1, -2
"""Pools of pieces that documents are added from; others are the numbers of sources,
their pieces on the side of training."""

_TRAIN, _HELD = SPLITS.index("train"), SPLITS.index("held_out")


def files_of(recipe: Recipe) -> list[str]:
    """Return the names of the files that are written, in that order."""
    held = [f"held_out/{s.name}.jsonl" for s in recipe.source if s.evaluate]
    stages = [f"{stage}.jsonl" for stage in STAGES]
    return [*stages, "held_out_scp.jsonl", *held, "corpus.jsonl"]


def weighted(recipe: Recipe, weight: str) -> str:
    """Return the SQL condition for records of sources that have a weight."""
    numbers = [i for i, source in enumerate(recipe.source) if getattr(source, weight)]
    return f"source IN ({', '.join(map(str, numbers))})"


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
        "SELECT t.source, t.place, h.source, h.place FROM kept t JOIN kept h USING "
        f"(passage) WHERE t.split = {_TRAIN} AND t.kind <> {MULTI} AND h.split = "
        f"{_HELD} AND h.kind <> {MULTI} ORDER BY t.record, h.record LIMIT 1"
    )
    if found:
        train, place, held, other = found
        raise ClaraError(
            f"{place} (source '{recipe.source[train].name}', split train): its passage "
            f"is also {other} (source '{recipe.source[held].name}', split held_out); "
            "take it out of one of them"
        )


def _sides(recipe: Recipe, work: Work) -> None:
    (total,) = work.row("SELECT count(*) FROM passages")
    most = max(recipe.held_out * total, 1) if recipe.held_out else total
    work.execute(
        "CREATE TABLE groups AS SELECT grp AS id, "
        f"max(split = {_TRAIN} AND (kind <> {MULTI} OR gold > 0)) OR "
        f"count(DISTINCT passage) > {most} AS train, max(split = {_HELD}) AS held, "
        f"max(kind IN ({SINGLE}, {PARAPHRASE}) OR gold = 2) AS asked, "
        "0 AS side, 0 AS held_beside, 0 AS train_beside FROM kept GROUP BY grp"
    )
    work.execute("CREATE UNIQUE INDEX groups_id ON groups(id)")
    work.execute(
        "UPDATE groups SET side = CASE WHEN held THEN 1 WHEN train THEN 0 ELSE "
        "(SELECT draw FROM passages WHERE passages.id = groups.id) < ? END",
        (share(recipe.held_out),),
    )
    _side_records(work, f"kind = {MULTI}", "AND gold = 2")
    for name, side in (("held_beside", HELD_OUT), ("train_beside", TRAIN)):
        work.execute(
            f"UPDATE groups SET {name} = 1 WHERE id IN "
            f"(SELECT grp FROM kept WHERE kind = {MULTI} AND side = {side})"
        )
    work.execute(
        "UPDATE groups SET side = CASE WHEN held THEN 1 WHEN train THEN 0 "
        "WHEN held_beside THEN 1 WHEN asked THEN side WHEN train_beside THEN 0 "
        "ELSE side END"
    )
    work.execute(
        "UPDATE passages SET side = (SELECT side FROM groups WHERE groups.id = grp)"
    )
    _side_records(work, f"kind <> {MULTI}", "LIMIT 1")


def _side_records(work: Work, kind: str, which: str) -> None:
    """Put records on the side of their source, else of the group of a document."""
    work.execute(
        f"UPDATE records SET side = CASE split WHEN {_TRAIN} THEN {TRAIN} WHEN {_HELD} "
        f"THEN {HELD_OUT} ELSE (SELECT groups.side FROM kept JOIN groups ON groups.id "
        f"= grp WHERE record = records.id {which}) END WHERE {kind} AND dropped IS NULL"
    )


def _drop(work: Work) -> None:
    for reason, condition in {
        # One that the recipe holds out stays, unless it is that of another such.
        "near_duplicates": f"kind <> {MULTI} AND same IS NOT NULL AND (split <> "
        f"{_HELD} OR EXISTS (SELECT 1 FROM docs d JOIN records r ON r.id = d.record "
        f"WHERE d.passage = same AND r.split = {_HELD}))",
        "split_conflicts": f"passage_side <> side AND (kind <> {MULTI} OR gold > 0)",
    }.items():
        work.execute(
            "UPDATE records SET dropped = ? WHERE id IN "
            f"(SELECT record FROM kept WHERE {condition})",
            (reason,),
        )
        work.execute(
            "INSERT INTO counts SELECT source, dropped, count(*) FROM records WHERE "
            "dropped = ? GROUP BY source",
            (reason,),
        )
    lost = "FROM kept WHERE passage_side <> side"
    work.execute(
        f"INSERT INTO counts SELECT source, 'lost_distractors', count(*) {lost} "
        "GROUP BY source"
    )
    # What is left of the documents is what the files are made of.
    work.execute(
        f"DELETE FROM docs WHERE (record, passage) IN (SELECT record, passage {lost})"
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
        _fill_pools(work)
        for file, name in enumerate(names):
            work.executemany(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
                _tasks(recipe, work, file, name),
            )
            work.execute("INSERT INTO files VALUES (?, 0, 0)", (file,))
            bar.update(1)
        work.execute("CREATE INDEX tasks_place ON tasks(file, place, ref, chunk, copy)")
        _check(recipe, work)
        bar.update(1)
        work.set_note("planned", True)


def _fill_pools(work: Work) -> None:
    """Pieces of all documents that the kept records have, by side and by source."""
    for pool in (POOL_TRAIN, POOL_HELD_OUT, "source"):
        side = HELD_OUT if pool == POOL_HELD_OUT else TRAIN
        work.execute(
            f"INSERT INTO pools SELECT DISTINCT {pool}, pieces.id FROM kept "
            f"JOIN pieces USING (passage) WHERE side = {side}"
        )


def _tasks(
    recipe: Recipe, work: Work, file: int, name: str
) -> Iterator[tuple[int, ...]]:
    """The lines of a file, as rows of the table."""

    def place(kind: int, ref: int, chunk: int = 0, copy: int = 0) -> int:
        return draw("place", recipe.seed, file, kind, ref, chunk, copy)

    if name == "corpus.jsonl":
        # Places are from 0 to 2**62, those of what is held out as far below 0.
        for pool, ref in work.execute("SELECT * FROM pools WHERE pool < 0"):
            shift = (pool - POOL_TRAIN) << 62
            yield file, place(DOCUMENT, ref) + shift, DOCUMENT, ref, 0, 0, -1
        return
    most = 1.0 if name == "held_out_scp.jsonl" else MOST
    for kind, weight, query in _queries(recipe, name):
        for ref, _, source, chunks in work.execute(query):
            times = min(float(getattr(recipe.source[source], weight)), most)
            chance = draw("copies", recipe.seed, file, kind, ref)
            copies = int(times) + (chance < share(times - int(times)))
            for chunk, copy in itertools.product(range(chunks), range(copies)):
                order = place(kind, ref, chunk, copy)
                yield file, order, kind, ref, chunk, copy, source


def _queries(recipe: Recipe, name: str) -> list[tuple[int, str, str]]:
    """Queries for the lines of a file, each with their kind and weight.

    A row is what the line is made of, the first that names its source, that source,
    and in how many lines it goes.
    """
    stage = name.removesuffix(".jsonl")
    side = TRAIN if stage in STAGES else HELD_OUT
    weight = stage if side == TRAIN else "evaluate"
    if stage == "held_out_scp":
        weight = "scp"
    asked = f"FROM asked WHERE side = {side} AND {weighted(recipe, weight)}"
    if weight != "scp":
        names = [f"held_out/{source.name}" for source in recipe.source]
        which = "" if side == TRAIN else f"AND source = {names.index(stage)}"
        questions = f"SELECT id, 0, source, 1 {asked} {which} AND kind <> {PARAPHRASE}"
        return [(QUESTION, weight, questions)]
    chunks = f"(count(*) + {recipe.pairs - 1}) / {recipe.pairs}"
    pairs = f"SELECT piece, min(id), source, {chunks} {asked} AND kind = {SINGLE}"
    paraphrases = f"SELECT id, 0, source, 1 {asked} AND kind = {PARAPHRASE}"
    repeats = (
        "SELECT pieces.id, min(record), source, 1 FROM kept JOIN pieces USING "
        f"(passage) WHERE side = {side} AND {weighted(recipe, 'reconstruct')} "
        f"AND (same IS NULL OR kind <> {MULTI})"
    )
    return [
        (PAIRS, "scp", f"{pairs} GROUP BY piece"),
        (PARAPHRASED, "scp", paraphrases),
        (REPEAT, "reconstruct", f"{repeats} GROUP BY pieces.id"),
    ]


def _check(recipe: Recipe, work: Work) -> None:
    counts = dict(work.execute("SELECT file, count(*) FROM tasks GROUP BY file"))
    lines = {name: counts.get(i, 0) for i, name in enumerate(files_of(recipe))}
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
