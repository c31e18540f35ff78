"""Config files and command-line overrides to validated runs.

A config file defines ``get_config(arg="")``, which returns an
``ml_collections.ConfigDict`` with the fields of `RunConfig`. It may hold more:

* ``stages``: a tuple of dicts, each with a ``name`` and the fields in which that run
  differs. They become runs in ``workdir/NAME``, in order; each starts from the one
  before unless it names its own ``init_from``.
* ``synthesize``: a group of settings; what makes the data first and the report last.

``{workdir}`` in a string stands for the whole pipeline's folder.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from clara_jax.config import RunConfig, parse
from clara_jax.errors import ClaraError
from clara_jax.files import first_line


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one command does.

    Attributes:
      workdir: the folder of it all.
      runs: in order; a single one unless the config has ``stages``.
      synthesize: settings of the generated data, or None.
    """

    workdir: Path
    runs: tuple[RunConfig, ...]
    synthesize: dict[str, Any] | None = None


def read_experiment(arguments: Sequence[str]) -> Experiment:
    """Read ``--config=FILE[:ARG] [--config.field=value ...]``.

    Args:
      arguments: the command line without the program's name.

    Returns:
      The validated experiment.

    Raises:
      ClaraError: one line on whatever is wrong: the file, a field's name or a value.
    """
    path, argument, overrides = _split(list(arguments))
    config = load_config(path, argument)
    argv = ["train", *(_checked(text, config) for text in overrides)]
    values = flags.FlagValues()
    try:
        # The file is loaded above: errors in it are told better from here.
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
    """Run a config file.

    Args:
      path: a Python file with ``get_config``.
      argument: handed to ``get_config``, as after the colon of ``--config=FILE:ARG``.

    Raises:
      ClaraError: no such file, or one that fails; names file and line.
    """
    if not Path(path).is_file():
        raise ClaraError(f"config file '{path}' does not exist")
    spec = importlib.util.spec_from_file_location("clara_jax_config", path)
    if spec is None or spec.loader is None:
        raise ClaraError(f"config file '{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    # So that ``from configs import common`` works from any folder.
    sys.path.insert(0, str(Path(path).resolve().parent.parent))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ClaraError(f"config file '{path}' defines no get_config()")
        config = module.get_config(*([] if argument is None else [argument]))
    except ClaraError:
        raise
    except Exception as error:
        line = _line_in(path, error)
        raise ClaraError(f"config file {path}{line}: {first_line(error)}") from error
    finally:
        sys.path[:] = before
    if not isinstance(config, ConfigDict):
        raise ClaraError(f"config file '{path}': get_config() returns no ConfigDict")
    return config


def expand(config: Mapping[str, Any] | ConfigDict) -> Experiment:
    """Turn a config into validated runs.

    Args:
      config: as the module says.

    Raises:
      ClaraError: a field that is unknown, missing or wrong.
    """
    values = _plain(config)
    synthesize = values.pop("synthesize", None) or None
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
            "config field 'workdir' is empty; say where the run goes with "
            "--config.workdir=DIR"
        )
    values = _fill(values, workdir)
    if not stages:
        return Experiment(Path(workdir), (parse(RunConfig, values),), synthesize)
    runs: list[RunConfig] = []
    for number, stage in enumerate(stages):
        stage = dict(stage)
        name = stage.pop("name", "")
        names = [Path(run.workdir).name for run in runs]
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ClaraError(
                f"config field 'stages[{number}].name' is {name!r}; give a name for "
                "its folder"
            )
        if name in names:
            raise ClaraError(f"config field 'stages[{number}].name': '{name}' is taken")
        merged = _merge(values, _fill(stage, workdir), f"stages[{number}]")
        merged["workdir"] = str(Path(workdir) / name)
        if runs and not stage.get("init_from"):
            merged["init_from"] = runs[-1].workdir
            merged.setdefault("backbone", "")
        try:
            runs.append(parse(RunConfig, merged))
        except ClaraError as error:
            raise ClaraError(f"stage '{name}': {error}") from error
    return Experiment(Path(workdir), tuple(runs), synthesize)


def _split(arguments: list[str]) -> tuple[str, str | None, list[str]]:
    """Config file, what follows its colon, and the other arguments."""
    for i, text in enumerate(arguments):
        found = re.fullmatch(r"--?config(?:=(.*))?", text)
        if found:
            used = 1 if found[1] is not None else 2
            value = found[1] or "".join(arguments[i + 1 : i + used])
            if not value:
                raise ClaraError("--config names no file; the experiments are configs/")
            path, colon, argument = value.partition(":")
            rest = arguments[:i] + arguments[i + used :]
            return path, argument if colon else None, rest
    raise ClaraError("no --config=FILE given; the experiments are in configs/")


def _checked(text: str, config: ConfigDict) -> str:
    """Refuse overrides of unknown fields; let tuples be written as a,b,c."""
    found = re.fullmatch(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", text, re.DOTALL)
    if not found:
        return text
    path, value = found[1], found[2]
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
        inner: Any = stage
        for part in parts:
            inner = inner.get(part) if isinstance(inner, Mapping | ConfigDict) else None
        if inner is not None:
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


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts, all the way down."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    return value


def _fill(value: Any, workdir: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, workdir) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_fill(item, workdir) for item in value)
    return value.replace("{workdir}", workdir) if isinstance(value, str) else value


def _merge(base: dict[str, Any], over: dict[str, Any], where: str) -> dict[str, Any]:
    """`over` into a copy of `base`, groups field by field."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            value = _merge(base[key], value, f"{where}.{key}")
        merged[key] = value
    return merged


def _line_in(path: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename == path:
        return f" line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename) == Path(path)]
    return f" line {lines[-1]}" if lines else ""
