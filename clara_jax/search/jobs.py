"""``job.json``: what is being written into a store, and who may go on with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.search.manifest import (
    FORMAT,
    JOB,
    MANIFEST,
    Manifest,
    StoreSettings,
    digest_of,
    settings_dict,
)

MODES = ("new", "add", "replace")

FREE = ("model", "base", "center")
"""Settings in which a job that goes on may differ: places, which hosts may spell
differently, and what one of them has measured. Those of the command that began it are
kept."""

SAME = ("fingerprint", "memory", "width", "dtype")
"""Settings in which what is added to a store must agree with it."""


def new_job(
    settings: StoreSettings,
    shards: int,
    corpus: Mapping[str, Any],
    mode: str,
    before: Manifest | None,
) -> dict[str, Any]:
    """What ``job.json`` says of a job that begins now."""
    return {
        "format": FORMAT,
        "mode": mode,
        "generation": 1 if before is None else before.generation + 1,
        "shards": shards,
        # Through JSON, so that tuples compare with the lists that are read.
        "corpus": json.loads(json.dumps(corpus)),
        "settings": settings_dict(settings),
    }


def read_job(path: Path, manifest: Manifest | None) -> dict[str, Any] | None:
    """Read the job that is under way in a store; None: there is none.

    A job that is part of the manifest was killed in the last step of its commit.

    Raises:
      ClaraError: its file is damaged or of another format.
    """
    file = path / JOB
    if not file.is_file():
        return None
    values = read_json(file)
    if values.get("format") != FORMAT:
        raise ClaraError(
            f"{file}: is of format {values.get('format')!r}, but this version writes "
            f"format {FORMAT}; finish it with the version that began it"
        )
    checksum = values.pop("checksum", None)
    if checksum != digest_of(values):
        raise ClaraError(
            f"{file}: is damaged (its checksum is wrong); remove it to give up what "
            "is being written"
        )
    if manifest is not None and values["generation"] <= manifest.generation:
        return None
    return values


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into ``job.json``: a job with its checksum."""
    return {**values, "checksum": digest_of(values)}


def job_digest(values: Mapping[str, Any]) -> str:
    """Digest of what makes two jobs the same, whatever store they are begun on."""
    return digest_of(_identity(values))


def shard_name(generation: int, k: int) -> str:
    """Name of shard `k` of what makes a generation of a store."""
    return f"{generation:06d}-{k:06d}"


def check_folder(path: Path, mode: str) -> None:
    """Refuse a place where this mode cannot write."""
    if mode not in MODES:
        raise ClaraError(f"there is no mode '{mode}'; give one of {', '.join(MODES)}")
    if path.exists() and not path.is_dir():
        raise ClaraError(f"{path}: is a file; give a folder with --store")
    if (path / MANIFEST).is_file() or (path / JOB).is_file():
        return
    if mode != "new":
        raise ClaraError(
            f"{path}: is no store yet, so nothing can be added; leave out --{mode}"
        )
    if path.is_dir() and any(path.glob("[!.]*")):
        raise ClaraError(
            f"{path}: holds other files and no store; give an empty folder with --store"
        )


def check_settings(
    path: Path, before: Manifest, settings: StoreSettings, mode: str
) -> None:
    """Refuse settings that do not fit what is in a store already."""
    if mode == "new":
        raise ClaraError(
            f"{path}: holds a finished store of other documents or settings; put "
            "these in with --add or --replace, or give another --store"
        )
    for name in SAME:
        old, new = getattr(before, name), getattr(settings, name)
        if old != new:
            what = "model, with another fingerprint" if name == "fingerprint" else name
            raise ClaraError(
                f"{path}: was made with another {what} (was {old}, now {new}); add "
                "with what it was made with, or give another --store"
            )


def check_same(path: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with another job, naming what differs."""
    old, new = _flatten(_identity(begun)), _flatten(_identity(now))
    changed = [
        f"{name} (was {_short(old.get(name))}, now {_short(new.get(name))})"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return
    rest = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    way_out = (
        f"remove {path / JOB}" if (path / MANIFEST).is_file() else "remove the folder"
    )
    raise ClaraError(
        f"{path}: another job is under way here; it differs in "
        f"{', '.join(changed[:5])}{rest}; finish it with the command that began it, or "
        f"{way_out} to give it up"
    )


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two jobs the same, wherever and onto whatever they are begun."""
    settings = {k: v for k, v in values["settings"].items() if k not in FREE}
    return {
        "mode": values["mode"],
        "shards": values["shards"],
        "corpus": values["corpus"],
        "settings": settings,
    }


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{name}.{key}" if name else str(key)))
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
