"""Config files and command-line overrides to validated runs.

A config file defines ``get_config(arg="")``, which returns an
``ml_collections.ConfigDict`` with the fields of `RunConfig`. It may hold more:

* ``stages``: a tuple of dicts, each with a ``name`` and the fields in which that run
  differs. They become runs in ``workdir/NAME``, in order; each starts from the one
  before unless it names its own ``init_from``.
* ``quickstart``: a group of settings; what makes the data first and, without
  ``report``, a report last. ``mix``, ``report``: likewise, of `clara_jax.pipeline`.
* With ``stages``, ``minutes`` is the time of the whole pipeline, of which each stage
  gets its ``share`` (and the report its own).

``{workdir}`` in a string stands for the whole pipeline's folder, ``{mix}`` for that of
its data (``mix.folder``). Values may be references to other fields (``get_ref``).
"""

import ast
import dataclasses
import difflib
import os
import re
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from clara_jax.config import RunConfig, parse, require
from clara_jax.config.parsing import flatten
from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.stages import find_stage


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one command does: runs in order, in the folder `workdir`.

    Attributes:
      quickstart, mix, report: settings of the generated data, of the data that is mixed
        and of the last report, or None.
      minutes: of the whole; 0 for any time.
      shares: of the time, by the runs' folder names, and ``report``.
    """

    workdir: Path
    runs: tuple[RunConfig, ...]
    quickstart: dict[str, Any] | None = None
    mix: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    minutes: float = 0.0
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)


def read_experiment(arguments: Sequence[str]) -> Experiment:
    """Read ``--config=FILE[:ARG] [--config.field=value ...]`` and validate it all.

    Raises:
      ClaraError: one line on whatever is wrong: the file, a field's name or a value.
    """
    path, argument, overrides = _split(arguments)
    config = load_config(path, argument)
    argv = ["train", *(_checked(text, config) for text in overrides)]
    values = flags.FlagValues()
    try:
        # The file is loaded above, where errors in it are reported better.
        config_flags.DEFINE_config_dict(
            "config", config, "", flag_values=values, sys_argv=argv
        )
        rest = values(argv)[1:]
        if rest:
            raise ClaraError(
                f"argument '{rest[0]}' is unknown; overrides look like "
                "--config.optim.steps=20"
            )
        overridden: Any = values["config"].value
        return expand(overridden)
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        raise ClaraError(first_line(error)) from error


def load_config(path: str, argument: str | None = None) -> ConfigDict:
    """Run ``get_config(argument)`` of a Python file, without argument if it is None.

    Raises:
      ClaraError: no such file, or one that fails; names file and line.
    """
    if not Path(path).is_file():
        raise ClaraError(f"config file '{path}' does not exist")
    if Path(path).suffix != ".py":
        raise ClaraError(f"config file '{path}' is not a Python file")
    file, before = os.path.abspath(path), list(sys.path)
    # So that ``from configs import common`` works from any folder.
    sys.path.insert(0, str(Path(path).resolve().parent.parent))
    try:
        get_config = runpy.run_path(file, run_name="clara_jax_config").get("get_config")
        if get_config is None:
            raise ClaraError(f"config file '{path}' defines no get_config()")
        config = get_config() if argument is None else get_config(argument)
    except ClaraError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines.append(error.lineno)
        line = f" line {lines[-1]}" if lines else ""
        raise ClaraError(f"config file {path}{line}: {first_line(error)}") from error
    finally:
        sys.path[:] = before
    if not isinstance(config, ConfigDict):
        raise ClaraError(f"config file '{path}': get_config() returns no ConfigDict")
    return config


def expand(config: Mapping[str, Any] | ConfigDict) -> Experiment:
    """Turn a config into validated runs.

    Raises:
      ClaraError: a field that is unknown, missing or wrong.
    """
    values = _plain(config, {})
    names = ("quickstart", "mix", "report")
    groups: dict[str, Any] = {name: values.pop(name, None) or None for name in names}
    stages = values.pop("stages", None) or ()
    if not isinstance(stages, tuple) or not all(isinstance(s, dict) for s in stages):
        raise ClaraError(
            "config field 'stages' must be a tuple of groups of fields, each with a "
            f"name, not {stages!r}"
        )
    workdir = values.get("workdir") or ""
    if not isinstance(workdir, str):
        raise ClaraError(f"config field 'workdir' must be str, not {workdir!r}")
    if not workdir:
        raise ClaraError(
            "config field 'workdir' is empty; give the run's folder with "
            "--config.workdir=DIR"
        )
    workdir = values["workdir"] = os.path.normpath(workdir)  # DIR/ is DIR
    places = {"workdir": workdir}
    groups = _plain(groups, places)
    places["mix"] = str((groups["mix"] or {}).get("folder", ""))
    values = _plain(values, places)
    if not stages:
        return Experiment(Path(workdir), (_checked_run(values),), **groups)
    runs: list[RunConfig] = []
    shares: dict[str, float] = {}
    for number, stage in enumerate(_plain(stages, places)):
        name = stage.pop("name", "")
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ClaraError(
                f"config field 'stages[{number}].name' is {name!r}; give a name for "
                "its folder"
            )
        require(name not in shares, f"stages[{number}].name", f"'{name}' is taken")
        shares[name] = _share(stage.pop("share", 1.0), f"stages[{number}].share")
        merged = _merge(values, stage)
        merged["workdir"] = str(Path(workdir) / name)
        if runs and not stage.get("init_from"):
            merged["init_from"] = runs[-1].workdir
            merged.setdefault("backbone", "")
        try:
            runs.append(_checked_run(merged))
        except ClaraError as error:
            raise ClaraError(f"stage '{name}': {error}") from error
    if report := groups["report"]:
        shares["report"] = _share(report.pop("share", 1.0), "report.share")
    # The time of the whole, which `Budget` shares out.
    minutes = runs[0].minutes
    each = tuple(dataclasses.replace(run, minutes=0.0) for run in runs)
    return Experiment(Path(workdir), each, **groups, minutes=minutes, shares=shares)


def _checked_run(values: dict[str, Any]) -> RunConfig:
    config = parse(RunConfig, values)
    find_stage(config)
    return config


def _share(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ClaraError(f"config field '{field}' must be above 0, not {value!r}")
    return float(value)


def _split(arguments: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """Return the config file, what follows its colon, and the other arguments."""
    for i, text in enumerate(arguments):
        if found := re.fullmatch(r"--?config(?:=(.*))?", text):
            used = 1 if found[1] is not None else 2
            value = found[1] or "".join(arguments[i + 1 : i + used])
            if not value:
                raise ClaraError("--config names no file; the experiments are configs/")
            path, colon, argument = value.partition(":")
            rest = [*arguments[:i], *arguments[i + used :]]
            return path, argument if colon else None, rest
    raise ClaraError("no --config=FILE given; the experiments are in configs/")


def _checked(text: str, config: ConfigDict) -> str:
    """Refuse overrides of unknown fields; let tuples be written as a,b,c."""
    found = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", text, re.DOTALL)
    if not found:
        return text
    path, value = found.groups()
    group: Any = config
    parts = path.split(".")
    for i, part in enumerate(parts):
        keys = list(group.keys()) if isinstance(group, ConfigDict) else []
        if part not in keys:
            near = difflib.get_close_matches(part, keys, 1)
            full = ".".join([*parts[:i], *near])
            hint = f"; did you mean '{full}'?" if near else ""
            raise ClaraError(f"config field '{path}' is unknown{hint}")
        group = group[part]
    if isinstance(group, ConfigDict):
        first = next(iter(group.keys()), "field")
        raise ClaraError(
            f"config field '{path}' is a group; set one of its fields, as in "
            f"--config.{path}.{first}=..."
        )
    stages: Any = config.get("stages") or ()
    for stage in stages:
        if flatten(_plain(stage, {})).get(path) is not None:
            raise ClaraError(
                f"config field '{path}' is set by stage '{stage.get('name')}' of this "
                "experiment, which wins; change it there"
            )
    if isinstance(group, tuple) and value is not None:
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            items = tuple(item for item in value.split(",") if item)
            return f"--config.{path}={items!r}"
    return text


def _plain(value: Any, places: Mapping[str, str]) -> Any:
    """Turn ConfigDicts into dicts, lists into tuples and ``{name}`` into places."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: _plain(item, places) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_plain(item, places) for item in value)
    value = value.get() if isinstance(value, FieldReference) else value
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", place)
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Put `over` into a copy of `base`, groups field by field."""
    merged = dict(base)
    for key, value in over.items():
        groups = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if groups else value
    return merged
