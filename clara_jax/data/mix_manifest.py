"""What a mix holds, counted: its manifest, and the table that is printed of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from clara_jax.data.mix_split import PAIRS, QUESTION, files_of
from clara_jax.data.mix_work import MULTI, PARAPHRASE, SINGLE, Work
from clara_jax.data.recipe import Recipe

MANIFEST = "manifest.json"

DROPPED = (
    "near_duplicates",
    "split_conflicts",
    "unanswerable",
    "repeated_questions",
    "without_gold",
    "long_paraphrases",
    "lost_distractors",
)
"""What is counted as left out: records; of `unanswerable` and `repeated_questions`,
questions; of `lost_distractors`, documents of records that stay."""

_SIDES = ("train", "held_out")


def count_mix(recipe: Recipe, work: Work) -> dict[str, Any]:
    """Count what a planned mix holds.

    Returns:
      ``sources`` by name, ``files`` with their lines (0 of one that is not there),
      ``totals``.
    """
    sources = [
        {
            "licence": source.licence,
            "origin": source.origin,
            "split": source.split,
            "records_read": 0,
            "passages": dict.fromkeys(_SIDES, 0),
            "tokens": dict.fromkeys(_SIDES, 0),
            "questions": dict.fromkeys(_SIDES, 0),
            "files": {},
            "dropped": dict.fromkeys(DROPPED, 0),
            "cut": {"passages": 0, "pieces": 0},
        }
        for source in recipe.source
    ]
    for source, number in work.do(
        "SELECT source, count(*) FROM records GROUP BY source"
    ):
        sources[source]["records_read"] = number
    work.do(
        "CREATE TEMP TABLE IF NOT EXISTS held AS SELECT DISTINCT source, side, passage "
        "FROM records JOIN docs ON record = records.id WHERE dropped IS NULL"
    )
    by_passage = (
        "SELECT source, side, count(DISTINCT passage), count(*), sum(tokens) FROM held "
        "JOIN pieces USING (passage) {} GROUP BY source, side"
    )
    for source, side, passages, _, tokens in work.do(by_passage.format("")):
        sources[source]["passages"][_SIDES[side]] = passages
        sources[source]["tokens"][_SIDES[side]] = tokens
    cut = "WHERE passage IN (SELECT passage FROM pieces WHERE part = 1)"
    for source, _, passages, pieces, _ in work.do(by_passage.format(cut)):
        sources[source]["cut"]["passages"] += passages
        sources[source]["cut"]["pieces"] += pieces
    for source, side, number in work.do(
        "SELECT source, side, count(*) FROM questions JOIN records ON records.id = "
        f"record WHERE dropped IS NULL AND kind IN ({SINGLE}, {MULTI}) "
        "GROUP BY source, side"
    ):
        sources[source]["questions"][_SIDES[side]] = number
    for source, name, number in work.do("SELECT source, name, value FROM counts"):
        sources[source]["dropped"][name] = number
    names = files_of(recipe)
    files = {name: {"records": 0, "questions": 0} for name in names}
    for file, source, records, questions in _lines(work):
        own = {"records": records, "questions": questions}
        for key, number in own.items():
            files[names[file]][key] += number
        if source >= 0:
            sources[source]["files"][names[file]] = own
    del files["corpus.jsonl"]["questions"]
    return {
        "sources": {s.name: v for s, v in zip(recipe.source, sources, strict=True)},
        "files": files,
        "totals": _totals(sources, work),
    }


def _lines(work: Work) -> list[tuple[int, int, int, int]]:
    """Lines and distinct questions by file and source."""
    found: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for file, source, number in work.do(
        "SELECT file, source, count(*) FROM tasks GROUP BY file, source"
    ):
        found[file, source][0] = number
    for file, source, number in work.do(
        "SELECT file, source, count(DISTINCT ref) FROM tasks WHERE kind = "
        f"{QUESTION} GROUP BY file, source"
    ):
        found[file, source][1] += number
    for file, source, number in work.do(
        "SELECT file, source, sum(n) FROM (SELECT DISTINCT file, source, ref FROM "
        f"tasks WHERE kind = {PAIRS}) JOIN (SELECT piece, count(*) AS n FROM questions "
        "JOIN records ON records.id = record JOIN weights USING (source) WHERE scp > 0 "
        f"AND dropped IS NULL AND kind <> {PARAPHRASE} GROUP BY piece) ON piece = ref "
        "GROUP BY file, source"
    ):
        found[file, source][1] += number
    return [
        (file, source, lines, questions)
        for (file, source), (lines, questions) in sorted(found.items())
    ]


def _totals(sources: list[dict[str, Any]], work: Work) -> dict[str, Any]:
    totals: dict[str, Any] = {
        name: {side: sum(source[name][side] for source in sources) for side in _SIDES}
        for name in ("questions",)
    }
    passages, tokens = dict.fromkeys(_SIDES, 0), dict.fromkeys(_SIDES, 0)
    for side, number, total in work.do(
        "SELECT side, count(DISTINCT passage), sum(tokens) FROM (SELECT DISTINCT side, "
        "passage FROM held) JOIN pieces USING (passage) GROUP BY side"
    ):
        passages[_SIDES[side]], tokens[_SIDES[side]] = number, total
    dropped = {
        name: sum(source["dropped"][name] for source in sources) for name in DROPPED
    }
    # Another passage may answer the same question: this is no leak, but worth knowing.
    (both,) = work.row(
        "SELECT count(*) FROM (SELECT lower(question) FROM questions JOIN records ON "
        f"records.id = record WHERE dropped IS NULL AND kind <> {PARAPHRASE} "
        "GROUP BY 1 HAVING min(side) < max(side))"
    )
    (group,) = work.row(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM passages GROUP BY grp)"
    )
    return {
        "passages": passages,
        "tokens": tokens,
        **totals,
        "largest_group": group,
        "questions_on_both_sides": both,
        "dropped": dropped,
    }


def table(manifest: Mapping[str, Any]) -> str:
    """Return a mix's manifest as text to be read."""
    stages = ("scp", "instruct", "end_to_end")
    head = ["source", "passages", "questions", *stages, "held out", "dropped"]
    rows = [head]
    for name, source in manifest["sources"].items():
        files = source["files"]
        lines = [files.get(f"{s}.jsonl", {}).get("records", 0) for s in stages]
        held = files.get(f"held_out/{name}.jsonl", {}).get("records", 0)
        dropped = sum(source["dropped"].values()) - source["dropped"][DROPPED[-1]]
        numbers = [source["passages"], source["questions"]]
        sums = [sum(number.values()) for number in numbers]
        rows.append([name, *(f"{n:,}" for n in (*sums, *lines, held, dropped))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    totals = manifest["totals"]
    for name in ("passages", "tokens", "questions"):
        train, held = totals[name].values()
        text.append(f"{name}: {train:,} for training, {held:,} held out")
    left = [f"{n:,} {k.replace('_', ' ')}" for k, n in totals["dropped"].items() if n]
    if left:
        text.append(f"left out: {', '.join(left)}")
    return "\n".join(text)
