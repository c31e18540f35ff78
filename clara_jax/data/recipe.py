"""What a mix of training data is made of: a TOML file as checked settings."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from clara_jax.config.parsing import check_choices, not_negative, parse, require
from clara_jax.data.formats import FORMATS, check_fields
from clara_jax.errors import ClaraError
from clara_jax.files import first_line

STAGES = ("scp", "instruct", "end_to_end")
MOST = 1000
"""The largest weight."""

_LICENCE = 'say under which its text may be used, as licence = "CC BY-SA 4.0"'


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set of a mix.

    Weights say how often each record is taken: 0 never, 0.5 for half of the records
    (chosen by hash), 2 twice.

    Attributes:
      name: letters, digits, ``.``, ``-`` and ``_``; held-out questions go by it.
      path: files, folders and ``hf:`` names, see ``open_records``.
      licence: under which its texts may be used.
      origin: where they come from.
      format, fields, encoding: see ``open_records``.
      split: ``hash`` of the passage, or ``train`` or ``held_out`` for all of it.
      scp: weight of passages with their questions, and of paraphrases, in stage 1.
      instruct: weight of questions in stage 2.
      end_to_end: weight of questions in stage 3.
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
    fields: tuple[str, ...] = ()
    encoding: str = ""
    split: Literal["hash", "train", "held_out"] = "hash"
    scp: float = 1.0
    instruct: float = 1.0
    end_to_end: float = 1.0
    reconstruct: float = 0.0
    evaluate: bool = True
    limit: int = 0
    gold: Literal["marked", "all"] = "marked"

    def __post_init__(self) -> None:
        require(bool(self.path), "path", "names no file")
        require(bool(self.licence.strip()), "licence", f"is blank; {_LICENCE}")
        formats = ("auto", *FORMATS)
        wanted = f"is '{self.format}', but must be one of {', '.join(formats)}"
        require(self.format in formats, "format", wanted)
        check_fields(self.fields)
        check_choices("", self)
        for name in (*STAGES, "reconstruct"):
            weight = getattr(self, name)
            _limit(0 <= weight <= MOST, name, f"from 0 to {MOST}", weight)
        not_negative("", self, "limit")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sources, and what is done with them.

    Attributes:
      source: at least one. Where two hold nearly the same passage, the first keeps it.
      held_out: share of the passages that is kept from training.
      seed: of every choice.
      pairs: question-answer pairs in one record of stage 1, at most.
      distractors: least and most documents beside the right ones, in stage 2.
      candidates: documents in a record of stage 3, and of a held-out question.
      near_duplicate: passages count as the same when they share at least this much of
        their word triples (Jaccard); 1 leaves only exact repeats.
      contained: passages are on one side, training or held out, when this share of the
        eight-word runs of one, or of a piece of it, is in the other.
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
        require(bool(names), "source", "is missing; list one as [[source]]")
        for i, name in enumerate(names):
            wanted = f"'{name}' is there twice; give each its own name"
            require(name not in names[:i], "source", wanted)
        held, given = self.held_out, list(self.distractors)
        _limit(0 <= held < 1, "held_out", "from 0 to below 1", held)
        not_negative("", self, "seed")
        for name in ("pairs", "candidates"):
            value = getattr(self, name)
            _limit(value > 0, name, "1 or more", value)
        rising = len(given) == 2 and 0 <= given[0] <= given[1]
        _limit(rising, "distractors", "[least, most]", given)
        for name in ("near_duplicate", "contained"):
            value = getattr(self, name)
            _limit(0 < value <= 1, name, "above 0, at most 1", value)


def _limit(good: bool, field: str, wanted: str, value: Any) -> None:
    require(good, field, f"must be {wanted}, not {value}")


def read_recipe(path: str | Path) -> Recipe:
    """Read a TOML file with the fields of `Recipe`, each ``[[source]]`` of `Source`.

    Raises:
      ClaraError: it cannot be read, or a field is unknown, missing or wrong.
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
    sources = []
    for number, table in enumerate(tables, 1):
        name = table.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise ClaraError(
                f"{path}: source {number}: needs a name of letters, digits, '.', '-' "
                "and '_', as name = \"squad\""
            )
        where = f"{path}: source '{name}'"
        if "licence" not in table:
            raise ClaraError(f"{where}: has no licence; {_LICENCE}")
        sources.append(_parse(Source, table, where))
    fields = {**values, "source": tuple(sources), "file": str(path)}
    return _parse(Recipe, fields, str(path))


def _parse(cls: type, values: Mapping[str, Any], where: str) -> Any:
    try:
        return parse(cls, values)
    except ClaraError as error:
        text = str(error).removeprefix("config ")
        raise ClaraError(f"{where}: {text}") from error
