"""Training data for every stage, with held-out questions, out of a recipe of sources.

A folder has ``STAGE.jsonl`` for stages 1 to 3; ``held_out_scp.jsonl`` and
``held_out/NAME.jsonl``, never trained on; ``corpus.jsonl``, all passages, held-out ones
first; ``manifest.json``, what all this is, counted. The first pass reads the sources
into a database beside the folder, the second writes files out of it; both go on where
they were killed. The same input makes the same bytes, but for ``inputs.json``.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_jax.data.folders import place_and_split
from clara_jax.data.hub_sets import is_hub
from clara_jax.data.mix_database import SCHEMA, split
from clara_jax.data.mix_read import Reader, join_contained
from clara_jax.data.mix_write import PAIRS, QUESTION, Writer, files_of, plan, weighted
from clara_jax.data.recipe import STAGES, Recipe
from clara_jax.data.work import (
    INPUTS,
    Progress,
    Work,
    checksums,
    differences,
    open_work,
    silent,
)
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json, writing
from clara_jax.text import ClaraTokenizer

VERSION = 2
"""Of the files that a recipe makes; a later one may make others."""

MANIFEST = "manifest.json"

DROPPED = (
    "near_duplicates split_conflicts unanswerable repeated_questions without_gold "
    "long_paraphrases lost_distractors"
).split()
"""What is counted as left out: records; of `unanswerable`, whose answer a cut goes
through or is not known, and `repeated_questions`, questions; of `lost_distractors`,
documents of records that stay."""

_SIDES = ("train", "held_out")


def mix(
    recipe: Recipe,
    folder: str | Path,
    tokenizer: ClaraTokenizer,
    max_length: int = 256,
    *,
    data: str | Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Mix training data, unless it has been done; return the manifest.

    Args:
      recipe: see `read_recipe`.
      folder: where to; appears whole.
      tokenizer: counts tokens.
      max_length: longest piece of a passage, in tokens.
      data: where relative paths of the recipe start; None takes the recipe's folder.
      progress: makes bars, as ``tqdm`` does.

    Raises:
      ClaraError: a file is missing or a record bad (names file and line), nothing is
        left for a stage, a passage would be on both sides, the folder holds something
        else, the work was begun with other settings or inputs, or the disk is full.

    Example::

      recipe = read_recipe("recipe.toml")
      tokenizer = ClaraTokenizer.load("HuggingFaceTB/SmolLM2-135M-Instruct", 1)
      manifest = mix(recipe, "data/mix", tokenizer)
    """
    folder = Path(os.path.abspath(folder)) if str(folder) else Path()
    if not folder.name:
        raise ClaraError(f"'{folder}' cannot hold a mix; name a new folder")
    if max_length < 16:
        raise ClaraError(f"max_length must be 16 or more, not {max_length}")
    scratch = folder.with_name(f".{folder.name}.mix")
    start = Path(recipe.file).parent if data is None else Path(data)
    paths = [
        [path if is_hub(path) else start / path for path in source.path]
        for source in recipe.source
    ]
    for source, files in zip(recipe.source, paths, strict=True):
        for path in files:
            if not is_hub(path) and not Path(place_and_split(path)[0]).exists():
                raise ClaraError(
                    f"{recipe.file}: source '{source.name}': {path}: no such file or "
                    "folder; relative paths start at --data, else at the recipe"
                )
    every = [path for files in paths for path in files]
    contents, inputs = checksums(every, progress, [folder, scratch])
    identity = _identity(recipe, contents, tokenizer, max_length)
    manifest = _finished(folder, identity)
    if manifest is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        return manifest
    with open_work(scratch, SCHEMA, progress) as work:
        # Work begun in another order of steps cannot go on in this one.
        work.begin({"order of steps": 2, **_flat(identity)})
        write_json(scratch / INPUTS, inputs)
        try:
            Reader(recipe, paths, tokenizer, max_length, work).run()
            join_contained(recipe.contained, work)
            split(recipe, work)
            plan(recipe, work)
        except ClaraError as error:
            if not isinstance(error.__cause__, OSError):
                shutil.rmtree(scratch, ignore_errors=True)  # it can come to nothing
            raise
        Writer(recipe, work).run()
        out = scratch / "out"
        manifest = {**identity, **_count(recipe, work)}
        write_json(out / INPUTS, inputs)
        write_json(out / MANIFEST, manifest)
        with writing(folder):
            os.replace(out, folder)
    shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def is_mixed(folder: str | Path) -> bool:
    """Return whether a folder holds a finished mix."""
    return (Path(folder) / MANIFEST).is_file()


def _identity(
    recipe: Recipe, contents: list[str], tokenizer: ClaraTokenizer, max_length: int
) -> dict[str, Any]:
    """Return all that the bytes of a mix depend on."""
    fields = dataclasses.asdict(recipe)
    del fields["file"]
    for source in fields["source"]:
        for name in ("fields", "encoding"):  # older mixes say nothing of them
            if not source[name]:
                del source[name]
    fields["source"] = {source.pop("name"): source for source in fields["source"]}
    settings = {
        "version": VERSION,
        "max_length": max_length,
        "tokenizer": text_digest(tokenizer.base.backend_tokenizer.to_str()).hex(),
        "recipe": fields,
    }
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    digest = text_digest(text).hex()
    found = iter(contents)
    inputs = {s.name: {name: next(found) for name in s.path} for s in recipe.source}
    identity = {"digest": digest, "settings": settings, "inputs": inputs}
    # Through JSON once, so that it compares with what was written.
    return json.loads(json.dumps(identity))


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as one mapping, its names as the user knows them."""
    settings = {**identity.get("settings", {})}
    recipe = {**settings.pop("recipe", {})}
    sources = recipe.pop("source", {})
    inputs = identity.get("inputs", {})
    return {
        **settings,
        **recipe,
        "order of sources": list(sources),
        **{f"source '{name}'": value for name, value in sources.items()},
        **{f"files of source '{name}'": value for name, value in inputs.items()},
    }


def _finished(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a finished mix; None if there is nothing yet."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not is_mixed(folder):
        raise ClaraError(f"{folder}: holds something else; name a new folder")
    manifest = read_json(folder / MANIFEST)
    different = differences(_flat(manifest), _flat(identity))
    if different:
        raise ClaraError(
            f"{folder}: was mixed from other settings or inputs ({different}); name a "
            "new folder"
        )
    for name, counts in manifest["files"].items():
        if counts["records"] and not (folder / name).is_file():
            raise ClaraError(
                f"{folder}: {name} is missing; delete the folder to mix it again"
            )
    return manifest


def _count(recipe: Recipe, work: Work) -> dict[str, Any]:
    """What a mix holds: its sources by name, its files with their lines, totals."""
    counted = ("passages", "tokens", "questions")
    sources = [
        {
            "licence": source.licence,
            "origin": source.origin,
            "split": source.split,
            "records_read": 0,
            **{name: dict.fromkeys(_SIDES, 0) for name in counted},
            "files": {},
            "dropped": dict.fromkeys(DROPPED, 0),
            "cut": {"passages": 0, "pieces": 0},
        }
        for source in recipe.source
    ]
    # Another passage may answer the same question: this is no leak, but worth knowing.
    (both,) = work.row(
        "SELECT count(*) FROM (SELECT 1 FROM asked WHERE kind <> 'paraphrase' "
        "GROUP BY lower(question) HAVING min(side) < max(side))"
    )
    (group,) = work.row(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM passages GROUP BY grp)"
    )
    totals = {
        **{name: dict.fromkeys(_SIDES, 0) for name in counted},
        "largest_group": group,
        "questions_on_both_sides": both,
        "dropped": dict.fromkeys(DROPPED, 0),
    }
    # By source, and of all sources, which is the last entry.
    for which in ("source", "-1 AS source"):
        every = f"(SELECT DISTINCT {which}, side, passage FROM kept)"
        for name, query in {
            "passages": f"side, count(*) FROM {every}",
            "tokens": f"side, sum(tokens) FROM {every} JOIN pieces USING (passage)",
            "questions": "side, count(*) FROM asked WHERE kind <> 'paraphrase'",
            "dropped": "name, sum(value) FROM counts",
        }.items():
            rows = work.execute(f"SELECT {which}, {query} GROUP BY 1, 2")
            for source, key, number in rows:
                key = key if name == "dropped" else _SIDES[key]
                [*sources, totals][source][name][key] = number
    read = "SELECT source, count(*) FROM records GROUP BY source"
    for source, number in work.execute(read):
        sources[source]["records_read"] = number
    for source, passages, pieces in work.execute(
        "SELECT source, count(DISTINCT passage), count(DISTINCT pieces.id) FROM kept "
        "JOIN pieces USING (passage) WHERE passage IN (SELECT passage FROM pieces "
        "WHERE part = 1) GROUP BY source"
    ):
        sources[source]["cut"] = {"passages": passages, "pieces": pieces}
    return {
        "sources": {s.name: v for s, v in zip(recipe.source, sources, strict=True)},
        "files": _count_files(recipe, work, sources),
        "totals": totals,
    }


def _count_files(
    recipe: Recipe, work: Work, sources: list[dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """The lines of all files, which are also noted with their sources."""
    pairs = work.execute(
        "SELECT file, source, sum(n) FROM (SELECT DISTINCT file, source, ref FROM "
        f"tasks WHERE kind = {PAIRS}) JOIN (SELECT piece, count(*) AS n FROM asked "
        f"WHERE {weighted(recipe, 'scp')} AND kind = 'single' GROUP BY piece) "
        "ON piece = ref GROUP BY file, source"
    )
    grouped = {(file, source): number for file, source, number in pairs}
    names = [file.name for file in files_of(recipe)]
    files = {name: {"records": 0, "questions": 0} for name in names}
    for file, source, records, questions in work.execute(
        f"SELECT file, source, count(*), count(DISTINCT CASE kind WHEN {QUESTION} THEN "
        "ref END) FROM tasks GROUP BY file, source ORDER BY file, source"
    ):
        questions += grouped.get((file, source), 0)
        own = {"records": records, "questions": questions}
        if source >= 0:
            sources[source]["files"][names[file]] = own
        for key, number in own.items():
            files[names[file]][key] += number
    del files["corpus.jsonl"]["questions"]
    return files


def table(manifest: Mapping[str, Any]) -> str:
    """Return a mix's manifest as text to be read."""
    rows = [["source", "passages", "questions", *STAGES, "held out", "dropped"]]
    for name, source in manifest["sources"].items():
        paths = [*(f"{stage}.jsonl" for stage in STAGES), f"held_out/{name}.jsonl"]
        dropped = source["dropped"]
        numbers = [
            *(sum(source[kind].values()) for kind in ("passages", "questions")),
            *(source["files"].get(path, {}).get("records", 0) for path in paths),
            # Those are documents, not records or questions.
            sum(dropped.values()) - dropped["lost_distractors"],
        ]
        rows.append([name, *(f"{number:,}" for number in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = []
    for row in rows:
        cells = [cell.rjust(n) for cell, n in zip(row, widths, strict=True)]
        text.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    totals = manifest["totals"]
    for name in ("passages", "tokens", "questions"):
        train, held = totals[name].values()
        text.append(f"{name}: {train:,} for training, {held:,} held out")
    left = [f"{n:,} {k.replace('_', ' ')}" for k, n in totals["dropped"].items() if n]
    if left:
        text.append(f"left out: {', '.join(left)}")
    return "\n".join(text)
