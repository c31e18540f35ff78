"""Training data for every stage, with held-out questions, out of a recipe of sources.

    folder/
      scp.jsonl instruct.jsonl end_to_end.jsonl   stages 1 to 3
      held_out_scp.jsonl held_out/NAME.jsonl      never trained on
      corpus.jsonl                                all passages, held-out ones first
      manifest.json                               what all this is, counted
      inputs.json                                 sizes and times of the sources' files

The first pass reads the sources into a work database beside the folder, the second
writes the files out of it; both go on where they were killed, and the same input makes
the same bytes (but for inputs.json, which spares reading the input again). No file is
empty: what has no lines is not there. The lines of every file are in an order by
chance, so that its first ones are of all sources; only the corpus has the held-out ones
first. The folder appears when all is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from clara_jax.data.inputs import INPUTS, Inputs
from clara_jax.data.mix_contain import join_contained
from clara_jax.data.mix_manifest import MANIFEST, count_mix
from clara_jax.data.mix_scan import Scan
from clara_jax.data.mix_split import plan, split
from clara_jax.data.mix_work import Work
from clara_jax.data.mix_write import Writer
from clara_jax.data.progress import Progress, silent
from clara_jax.data.recipe import Recipe
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, writable_folder, write_error, write_json
from clara_jax.text import ClaraTokenizer

VERSION = 2
"""Of the files that a recipe makes; a later one may make others."""


def mix(
    recipe: Recipe,
    folder: str | Path,
    tokenizer: ClaraTokenizer,
    max_length: int = 256,
    *,
    data: str | Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Mix training data; do nothing if it has been done.

    Args:
      recipe: see `read_recipe`.
      folder: where to; appears whole.
      tokenizer: counts tokens.
      max_length: longest piece of a passage, in tokens.
      data: where relative paths of the recipe start; None takes the recipe's folder.
      progress: makes bars, as ``tqdm`` does.

    Returns:
      The manifest, which is also in the folder.

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
    scratch = folder.with_name(f".{folder.name}.mix")
    if max_length < 16:
        raise ClaraError(f"max_length must be 16 or more, not {max_length}")
    paths = find_inputs(recipe, data)
    inputs = Inputs([p for files in paths for p in files], [folder, scratch], progress)
    identity = _identity(recipe, inputs, tokenizer, max_length)
    done = _finished(folder, identity)
    if done is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        return done
    writable_folder(folder.parent)
    with Work(scratch) as work:
        _begin(work, scratch, identity)
        write_json(scratch / INPUTS, inputs.files)
        try:
            Scan(recipe, paths, tokenizer, max_length, work).run(progress)
            join_contained(recipe.contained, work, progress)
            split(recipe, work, progress)
            plan(recipe, work, progress)
        except ClaraError as error:
            if not isinstance(error.__cause__, (OSError, sqlite3.Error)):
                shutil.rmtree(scratch, ignore_errors=True)  # it can come to nothing
            raise
        out = scratch / "out"
        Writer(recipe, work, out, scratch, progress).run()
        manifest = {**identity, **count_mix(recipe, work)}
        write_json(out / INPUTS, inputs.files)
        write_json(out / MANIFEST, manifest)
        try:
            os.replace(out, folder)
        except OSError as error:
            raise write_error(folder, error) from error
    shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def is_mixed(folder: str | Path) -> bool:
    """Whether a folder holds a finished mix."""
    return (Path(folder) / MANIFEST).is_file()


def find_inputs(recipe: Recipe, data: str | Path | None = None) -> list[list[Path]]:
    """Return the files of every source.

    Raises:
      ClaraError: one does not exist.
    """
    start = recipe.folder if data is None else Path(data)
    found = []
    for source in recipe.source:
        found.append([start / path for path in source.path])
        for path in found[-1]:
            if not Path(str(path).partition("#")[0]).exists():
                raise ClaraError(
                    f"{recipe.file}: source '{source.name}': {path}: no such file or "
                    "folder; relative paths start at --data, else at the recipe"
                )
    return found


def _identity(
    recipe: Recipe,
    inputs: Inputs,
    tokenizer: ClaraTokenizer,
    max_length: int,
) -> dict[str, Any]:
    """What decides the bytes of a mix."""
    fields = dataclasses.asdict(recipe)
    del fields["file"]
    fields["source"] = {source.pop("name"): source for source in fields["source"]}
    backend = tokenizer.base.backend_tokenizer.to_str()
    settings = {
        "version": VERSION,
        "max_length": max_length,
        "tokenizer": hashlib.blake2b(backend.encode(), digest_size=16).hexdigest(),
        "recipe": fields,
    }
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    found = iter(inputs.checksums)
    checksums = {
        source.name: {name: next(found) for name in source.path}
        for source in recipe.source
    }
    # Through JSON once, so that it compares with what was written.
    return json.loads(
        json.dumps(
            {
                "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
                "settings": settings,
                "inputs": checksums,
            }
        )
    )


def _finished(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished mix; None if there is nothing yet."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not is_mixed(folder):
        raise ClaraError(f"{folder}: holds something else; name a new folder")
    manifest = read_json(folder / MANIFEST)
    different = _differences(manifest, identity)
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


def _begin(work: Work, scratch: Path, identity: dict[str, Any]) -> None:
    before = work.note("identity")
    if before is None:
        with work.step():
            work.set_note("identity", identity)
        return
    different = _differences(before, identity)
    if different:
        raise ClaraError(
            f"{scratch}: was begun with other settings or inputs ({different}); delete "
            "it to start anew"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two identities, in words; empty if nothing does."""

    def flat(identity: dict[str, Any]) -> dict[str, Any]:
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

    old, new = flat(before), flat(now)
    names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
