"""Models by their names: adapters that come with the package.

A folder of models holds one folder a model, as `write_peft_folder` lays it out, with a
card in its README.md. ``clara_jax/shipped/`` is such a folder; the environment variable
``CLARA_JAX_MODELS`` may name one more, which goes first.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clara_jax.checkpoint import replace_folder
from clara_jax.convert.folder import check_destination
from clara_jax.convert.loaded import ModelFolder
from clara_jax.convert.peft import is_peft_folder, write_peft_folder
from clara_jax.errors import ClaraError
from clara_jax.files import write_error

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
"""The package's own folder of models."""

VARIABLE = "CLARA_JAX_MODELS"
"""Environment variable with one more folder of models."""

CARD = "README.md"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def shipped_names() -> tuple[str, ...]:
    """Names of the models that `load_model` finds by them, sorted."""
    found = (path for folder in _folders() for path in folder.iterdir())
    return tuple(
        sorted({p.name for p in found if _NAME.fullmatch(p.name) and is_peft_folder(p)})
    )


def shipped_folder(name: str) -> Path | None:
    """The folder of the model of this name, or None where there is none.

    Raises:
      ClaraError: ``CLARA_JAX_MODELS`` names no folder.
    """
    if not _NAME.fullmatch(name):
        return None
    places = (folder / name for folder in _folders())
    return next((place for place in places if is_peft_folder(place)), None)


def named_folder(path: str | os.PathLike) -> Path:
    """Where a model is that is given by path or name: what is here goes first.

    Returns:
      The folder of a model with this name if nothing here is called so; else `path`.
    """
    here = Path(path)
    return here if here.exists() else shipped_folder(str(path)) or here


def names_remark(name: str) -> str:
    """What an error adds of `name`, found nowhere; empty for what names no model."""
    separators = {"/", os.sep, os.altsep} - {None}
    if not name or name[0] in ".~" or any(mark in name for mark in separators):
        return ""
    names = ", ".join(shipped_names()) or "none in this version"
    return f"no model of that name comes with clara_jax; there are: {names}"


def export_adapters(
    path: str | os.PathLike, model: ModelFolder, base: str, card: str
) -> None:
    """Write a model's adapters as they are shipped, with their card.

    All roles that the model has, in bfloat16; the special rows stay float32.

    Args:
      path: destination, such as ``clara_jax/shipped/smollm2-135m-16x``. An older model
        there is replaced whole, by rename, and stays if anything fails.
      model: a CLaRa model.
      base: hub name of the base model, which is all that is kept of it.
      card: README.md: data, licences, scores and limits, in Markdown.

    Raises:
      ClaraError: a base model; a destination that holds something else, or cannot be
        written.
    """
    path = Path(path).absolute()
    if not is_peft_folder(path):
        check_destination(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as name:
            made = Path(name) / path.name
            write_peft_folder(made, model, dtype="bfloat16", name=base)
            (made / CARD).write_text(card, encoding="utf-8")
            replace_folder(made, path)
    except (OSError, ClaraError) as error:
        # `write_peft_folder` has named the temporary folder; users know `path`.
        cause = error.__cause__ if isinstance(error, ClaraError) else error
        if isinstance(cause, OSError):
            raise write_error(path, cause) from error
        raise


def _folders() -> Iterator[Path]:
    given = os.environ.get(VARIABLE, "")
    if given and not Path(given).is_dir():
        raise ClaraError(f"{given}: no such folder; {VARIABLE} must name one, or none")
    if given:
        yield Path(given)
    if SHIPPED.is_dir():
        yield SHIPPED
