"""The floors hold, files stay short, and every room has its tests."""

import ast
import re
from pathlib import Path

import floors
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / floors.PACKAGE
LONGEST = 500

# Rooms without behaviour of their own: an exception and a legend.
UNTESTED = {"errors", "shapes"}


def package_sources() -> dict[str, str]:
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources


def all_files() -> list[Path]:
    folders = (floors.PACKAGE, "tests", "configs", "launch")
    return sorted(path for name in folders for path in (ROOT / name).rglob("*.py"))


def rooms() -> list[str]:
    names = {floors.room(module) for module in package_sources()}
    return sorted(name for name in names if name)


def test_every_import_respects_the_floors():
    assert floors.breaches(package_sources()) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"model.layers": "import clara_jax.clara.topk"}, "floor 2 may not know"),
        ({"model.layers": "from clara_jax.train import loop"}, "may not know floor 7"),
        ({"train.loop": "from clara_jax.pipeline import measure"}, "may not know"),
        ({"data.sources": "def f():\n  import clara_jax.search"}, "data.sources:2"),
        ({"text.prompts": "from ..model import Transformer"}, "relative import"),
        ({"shapes": "from clara_jax.errors import ClaraError"}, "may not know"),
        ({"train.state": "from flax import struct"}, "imports flax"),
        ({"convert.apple": "import torch.nn"}, "imports torch"),
        ({"evaluate.report": "import clara_jax.train.__main__"}, "is a command"),
        ({"data.sources": "from clara_jax import config"}, ""),
        ({"data.sources": "from clara_jax import __version__"}, ""),
        ({"data.sources": "from clara_jax import Transformer"}, "itself"),
        ({"data.sources": "from tests.floors import room"}, "not part of"),
        ({"attic.box": "import clara_jax.errors"}, "'attic' has no floor yet"),
        ({"config": "import numpy"}, "nothing installed"),
        ({"config": "from clara_jax.errors import ClaraError"}, ""),
        ({"train.__main__": "from clara_jax.evaluate import metrics"}, ""),
        ({"answer": "from clara_jax.generate import decode\nimport flaxen"}, ""),
    ],
)
def test_a_made_up_breach_is_caught(sources, expected):
    named = {f"clara_jax.{name}": text for name, text in sources.items()}
    found = floors.breaches({**named, "clara_jax.config": "", **named})
    if expected:
        assert len(found) == 1
        assert expected in found[0]
    else:
        assert found == []


def test_a_made_up_cycle_is_caught():
    found = floors.breaches(
        {
            "clara_jax.model.a": "from clara_jax.model import b",
            "clara_jax.model.b": "def late():\n  from clara_jax.model.a import f",
            "clara_jax.model": "",
        }
    )
    assert found == [
        "clara_jax.model.a -> clara_jax.model.b -> clara_jax.model.a: a cycle"
    ]


@pytest.mark.parametrize("path", all_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_documented_and_well_named(path: Path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines < LONGEST, f"{lines} lines: split it where two things meet"
    assert path.stem not in ("utils", "util", "helpers", "misc", "common_utils")
    if "tests" not in path.parts:
        assert ast.get_docstring(ast.parse(text)), "says nothing about what it is for"


@pytest.mark.parametrize("room", rooms())
def test_every_room_has_its_tests(room: str):
    if room in UNTESTED:
        return
    if (PACKAGE / room).is_dir():
        assert list((ROOT / "tests" / room).glob("test_*.py")), f"tests/{room} is empty"
    else:
        assert (ROOT / "tests" / f"test_{room}.py").is_file()


def test_every_floor_is_inhabited():
    assert set(rooms()) <= set(floors.FLOORS)


def test_the_design_names_every_room_on_its_floor():
    page = (ROOT / "docs" / "design.md").read_text()
    table = (
        page.split("## Rooms and floors")[1].split("|---|---|\n")[1].split("\n\n")[0]
    )
    groups = [re.findall(r"`(\w+)(?:/|\.py)`", text) for text in table.split("| | |")]
    groups = [sorted(set(group) & set(floors.FLOORS)) for group in groups]
    numbers = sorted(set(floors.FLOORS.values()), reverse=True)
    assert groups == [
        sorted(room for room, floor in floors.FLOORS.items() if floor == number)
        for number in numbers
    ]


def test_no_two_files_share_a_stem():
    stems = [path.stem for path in PACKAGE.rglob("*.py")]
    shared = {stem for stem in stems if stems.count(stem) > 1}
    assert shared == {"__init__", "__main__"}


def test_no_function_has_more_than_seven_arguments():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and len({*_arguments(node)} - {"self", "cls"}) > 7
    ]
    assert not long


def _arguments(node: ast.FunctionDef) -> list[str]:
    given = node.args
    return [x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def test_the_readme_names_every_folder():
    named = (ROOT / "README.md").read_text().split("## Map")[1].split("\n## ")[0]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(re.findall(r"`(\w+)/`", named))
