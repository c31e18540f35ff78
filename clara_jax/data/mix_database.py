"""The work database of a mix (`mix.sql`), and which side every passage is on.

`_choose_sides` has the rules. A record with several documents is on the side of the
first that holds its answer. It loses documents of the other side, and is dropped where
one of them holds the answer.
"""

from pathlib import Path
from typing import Any

from clara_jax.data.recipe import Recipe
from clara_jax.data.work import Work
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError

TRAIN, HELD_OUT = 0, 1
"""Sides."""

SCHEMA = Path(__file__).with_name("mix.sql").read_text(encoding="utf-8")


def draw(*parts: Any) -> int:
    """Return 62 bits that follow from the arguments and look like chance."""
    digest = text_digest("\0".join(map(str, parts)), 8)
    return int.from_bytes(digest, "little") >> 2


def share(number: float) -> int:
    """Return the limit below which this share of all draws (`draw`) lies."""
    return int(number * (1 << 62))


def text_key(text: str) -> bytes:
    """Return a digest of a text, its white space apart."""
    return text_digest(" ".join(text.split()))


def split(recipe: Recipe, work: Work) -> None:
    """Give every passage and record its side, and drop what cannot be used.

    Raises:
      ClaraError: a passage is on both sides by the recipe.
    """
    steps = (_refuse_both, _choose_sides, _drop)
    work.in_steps("split", len(steps), 1, lambda i, _: steps[i](recipe, work), "step")


def _refuse_both(recipe: Recipe, work: Work) -> None:
    found = work.row(
        "SELECT t.source, t.place, h.source, h.place FROM kept t JOIN kept h USING "
        "(passage) WHERE t.split = 'train' AND t.kind <> 'multi' AND h.split = "
        "'held_out' AND h.kind <> 'multi' ORDER BY t.record, h.record LIMIT 1"
    )
    if found:
        train, place, held, other = found
        raise ClaraError(
            f"{place} (source '{recipe.source[train].name}', split train): its passage "
            f"is also {other} (source '{recipe.source[held].name}', split held_out); "
            "take it out of one of them"
        )


def _choose_sides(recipe: Recipe, work: Work) -> None:
    """Choose the side of every group of passages, by the first rule that applies.

    One of them is in a source that is held out: held out. One is in a source of
    training (alone, or as a document that holds an answer), or the group is larger than
    all that is to be held out: training. A held-out record has one among its documents:
    held out. Questions are asked about one, or it is the first document that holds the
    answer to one: by its hash. A training record has one among its documents: training.
    Else by its hash.
    """
    (total,) = work.row("SELECT count(*) FROM passages")
    most = max(recipe.held_out * total, 1) if recipe.held_out else total
    # The side is that by the hash at first.
    work.execute(
        "CREATE TABLE groups AS SELECT grp AS id, max(split = 'held_out') AS held, "
        "max(split = 'train' AND (kind <> 'multi' OR gold > 0)) OR "
        f"count(DISTINCT passage) > {most} AS train, "
        "max(kind IN ('single', 'paraphrase') OR gold = 2) AS asked, "
        f"(SELECT draw FROM passages WHERE id = kept.grp) < {share(recipe.held_out)} "
        "AS side, 0 AS held_beside, 0 AS train_beside FROM kept GROUP BY grp"
    )
    work.execute("CREATE UNIQUE INDEX groups_id ON groups(id)")
    rules = "CASE WHEN held THEN 1 WHEN train THEN 0 {} ELSE side END"
    beside = "WHEN held_beside THEN 1 WHEN asked THEN side WHEN train_beside THEN 0"
    # A record is on the side of its source, else of its first document with the answer.
    records = (
        "UPDATE records SET side = CASE split WHEN 'train' THEN 0 WHEN 'held_out' THEN "
        "1 ELSE (SELECT groups.side FROM kept JOIN groups ON groups.id = grp WHERE "
        "record = records.id ORDER BY gold DESC LIMIT 1) END "
        "WHERE dropped IS NULL AND kind"
    )
    work.execute(f"UPDATE groups SET side = {rules.format('')}")
    work.execute(f"{records} = 'multi'")
    for name, side in (("held_beside", HELD_OUT), ("train_beside", TRAIN)):
        work.execute(
            f"UPDATE groups SET {name} = 1 WHERE id IN "
            f"(SELECT grp FROM kept WHERE kind = 'multi' AND side = {side})"
        )
    work.execute(f"UPDATE groups SET side = {rules.format(beside)}")
    work.execute(
        "UPDATE passages SET side = (SELECT side FROM groups WHERE groups.id = grp)"
    )
    work.execute(f"{records} <> 'multi'")


def _drop(_: Recipe, work: Work) -> None:
    for reason, condition in {
        # One that the recipe holds out stays, unless it is that of another such.
        "near_duplicates": "kind <> 'multi' AND same IS NOT NULL AND (split <> "
        "'held_out' OR EXISTS (SELECT 1 FROM docs d JOIN records r ON r.id = d.record "
        "WHERE d.passage = same AND r.split = 'held_out'))",
        "split_conflicts": "passage_side <> side AND (kind <> 'multi' OR gold > 0)",
    }.items():
        work.execute(
            f"UPDATE records SET dropped = '{reason}' WHERE id IN "
            f"(SELECT record FROM kept WHERE {condition})"
        )
    lost = "FROM kept WHERE passage_side <> side"
    work.execute(
        "INSERT INTO counts SELECT source, dropped, count(*) FROM records WHERE "
        "dropped IN ('near_duplicates', 'split_conflicts') GROUP BY source, dropped "
        f"UNION ALL SELECT source, 'lost_distractors', count(*) {lost} GROUP BY source"
    )
    # What is left of the documents is what the files are made of.
    work.execute(
        f"DELETE FROM docs WHERE (record, passage) IN (SELECT record, passage {lost})"
    )
