"""What a mix of training data is made of: a TOML file as checked settings."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from clara_jax.config import parse
from clara_jax.data.records import FORMATS
from clara_jax.errors import ClaraError
from clara_jax.files import first_line

SPLITS = ("hash", "train", "held_out")
GOLD = ("marked", "all")
STAGES = ("scp", "instruct", "end_to_end")
WEIGHTS = (*STAGES, "reconstruct")
MOST = 1000
"""The largest weight."""

_EXAMPLE = 'licence = "CC BY-SA 4.0"'


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set of a mix.

    Weights say how often each record is taken: 0 never, 0.5 for half of the records
    (chosen by hash), 2 twice.

    Attributes:
      name: letters, digits, ``.``, ``-`` and ``_``; held-out questions go by it.
      path: files and TFDS folders.
      licence: under which its texts may be used. origin: where they come from.
      format: see ``open_records``.
      split: ``hash`` of the passage, or ``train`` or ``held_out`` for all of it.
      scp: weight of passages with their questions, and of paraphrases, in stage 1.
      instruct: weight of questions in stage 2. end_to_end: in stage 3.
      reconstruct: weight of passages to be given back as they are, in stage 1.
      evaluate: whether its held-out questions are measured.
      limit: passages that are taken at most; 0 takes all.
      gold: which documents hold the answer where a record has several: those that are
        ``marked`` (pos_index), or ``all`` where none is.
    """

    name: str
    path: tuple[str, ...]
    licence: str
    origin: str = ""
    format: str = "auto"
    split: str = "hash"
    scp: float = 1.0
    instruct: float = 1.0
    end_to_end: float = 1.0
    reconstruct: float = 0.0
    evaluate: bool = True
    limit: int = 0
    gold: str = "marked"

    def __post_init__(self) -> None:
        _require(bool(self.path), "path", "names no file")
        _require(
            bool(self.licence.strip()),
            "licence",
            f"is blank; say under which its text may be used, as {_EXAMPLE}",
        )
        _one_of("format", self.format, ("auto", *FORMATS))
        _one_of("split", self.split, SPLITS)
        _one_of("gold", self.gold, GOLD)
        for name in WEIGHTS:
            weight = getattr(self, name)
            _require(
                0 <= weight <= MOST, name, f"must be from 0 to {MOST}, not {weight}"
            )
        _require(self.limit >= 0, "limit", f"must be 0 or more, not {self.limit}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sources, and what is done with them.

    Attributes:
      source: at least one. Where two hold nearly the same passage, the first keeps it.
      held_out: share of the passages that is kept from training.
      seed: of every choice.
      pairs: question-answer pairs in one record of stage 1, at most.
      distractors: documents beside the right ones in a record of stage 2: at least, at
        most.
      candidates: documents in a record of stage 3, and of a held-out question.
      near_duplicate: passages count as the same when they share at least this much of
        their word triples (Jaccard); 1 leaves only exact repeats.
      contained: passages are on one side, training or held out, when this share of the
        eight-word runs of one, or of a piece of it, is in the other; 1 for all of them.
      file: where it was read.
    """

    source: tuple[Source, ...]
    held_out: float = 0.1
    seed: int = 0
    pairs: int = 8
    distractors: tuple[int, ...] = (4, 9)
    candidates: int = 20
    near_duplicate: float = 0.8
    contained: float = 0.3
    file: str = "recipe"

    def __post_init__(self) -> None:
        names = [source.name for source in self.source]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ClaraError(
                    f"{self.file}: source '{name}' is there twice; give each its own "
                    "name"
                )
        _require(bool(names), "source", "is missing; list one as [[source]]")
        _require(
            0 <= self.held_out < 1,
            "held_out",
            f"must be from 0 to below 1, not {self.held_out}",
        )
        for name in ("pairs", "candidates"):
            value = getattr(self, name)
            _require(value > 0, name, f"must be 1 or more, not {value}")
        _require(self.seed >= 0, "seed", f"must be 0 or more, not {self.seed}")
        _require(
            len(self.distractors) == 2
            and 0 <= self.distractors[0] <= self.distractors[1],
            "distractors",
            f"must be [least, most], not {list(self.distractors)}",
        )
        for name in ("near_duplicate", "contained"):
            value = getattr(self, name)
            _require(0 < value <= 1, name, f"must be above 0, at most 1, not {value}")

    @property
    def folder(self) -> Path:
        """The folder of the recipe, where relative paths start by default."""
        return Path(self.file).parent


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
      path: a TOML file whose fields are those of `Recipe`, each ``[[source]]`` with
        those of `Source`.

    Raises:
      ClaraError: it cannot be read, or a field is unknown, missing or wrong; names the
        file, and the source and the field.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaraError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ClaraError(f"{path}: is not TOML ({first_line(error)})") from error
    if "file" in values:
        raise ClaraError(f"{path}: field 'file' is unknown")
    tables = values.get("source", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ClaraError(f"{path}: field 'source' must be tables, as [[source]]")
    sources = [_source(table, path, i) for i, table in enumerate(tables, 1)]
    try:
        fields = {**values, "source": tuple(sources), "file": str(path)}
        return parse(Recipe, fields)
    except ClaraError as error:
        raise _placed(error, str(path)) from error


def _source(table: dict[str, Any], path: Path, number: int) -> Source:
    name = table.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ClaraError(
            f"{path}: source {number}: needs a name of letters, digits, '.', '-' and "
            f"'_', as name = \"squad\""
        )
    where = f"{path}: source '{name}'"
    if "licence" not in table:
        raise ClaraError(
            f"{where}: has no licence; say under which its text may be used, as "
            f"{_EXAMPLE}"
        )
    try:
        return parse(Source, table)
    except ClaraError as error:
        raise _placed(error, where) from error


def _placed(error: ClaraError, where: str) -> ClaraError:
    text = str(error)
    if text.startswith(where):
        return error
    return ClaraError(f"{where}: {text.removeprefix('config ')}")


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise ClaraError(f"field '{field}' {message}")


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    message = f"is '{value}', but must be one of {', '.join(choices)}"
    _require(value in choices, field, message)
