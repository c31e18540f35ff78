"""The examples in the package's docstrings run, and print what they say.

An example is run with the names of its module. Examples are found by reading the
sources; only modules that have some are imported, and none that needs what is not
installed.
"""

import ast
import doctest
import importlib
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def find_examples(root: Path, package: str) -> list[doctest.DocTest]:
    """Find the docstrings with examples, each with its module's name and its line."""
    found = []
    for path in sorted((root / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" not in text:
            continue
        tree = ast.parse(text)
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if all(map(is_installed, imports_of(tree))):
            found += examples_of(tree, module, str(path))
    return found


def examples_of(tree: ast.Module, module: str, file: str) -> list[doctest.DocTest]:
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text, line = node.value.value, node.lineno - 1
            if isinstance(text, str) and ">>>" in text:
                found.append(parser.get_doctest(text, {}, module, file, line))
    return found


def imports_of(tree: ast.Module) -> set[str]:
    """What a module imports at once, by the first part of its name."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def run(test: doctest.DocTest) -> str:
    """Run the examples of one docstring; return what is wrong with them."""
    test.globs = {**vars(importlib.import_module(test.name))}
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.write)
    return report.getvalue()


EXAMPLES = find_examples(ROOT, "clara_jax")


@pytest.mark.parametrize(
    "test", EXAMPLES, ids=[f"{test.name}:{(test.lineno or 0) + 1}" for test in EXAMPLES]
)
def test_the_examples_of_a_docstring_run(test: doctest.DocTest):
    wrong = run(test)
    assert not wrong, wrong


MADE_UP = '''"""Add.

>>> add(1, 2)
3
"""

import {imported}

NAMES = ("one", "two")
"""Names.

Example:
  >>> NAMES
  ('one', ...)
"""


def add(a, b):
    """Return the sum.

    Example:
      >>> {example}
    """
    return a + b
'''


def made_up(folder: Path, name: str, example: str = "1", imported: str = "math"):
    (folder / name).mkdir()
    text = MADE_UP.format(example=example, imported=imported)
    (folder / name / "sums.py").write_text(text, encoding="utf-8")
    return find_examples(folder, name)


@pytest.mark.parametrize(
    ("example", "wrong"),
    [
        ("add(1, 2)\n      3", ""),
        ("total = add(1, 2)\n      >>> total\n      3", ""),
        ("add(1, 2)\n      4", "Expected:\n    4\nGot:\n    3"),
        ("added(1, 2)", "NameError: name 'added' is not defined"),
        ("add(1)", "TypeError: add() missing 1 required positional argument"),
    ],
)
def test_a_made_up_example_is_judged(tmp_path, monkeypatch, request, example, wrong):
    name = re.sub(r"\W", "_", request.node.name)  # imported once, so each its own
    tests = made_up(tmp_path, name, example)
    assert [test.lineno for test in tests] == [0, 9, 18]  # counted from 0
    monkeypatch.syspath_prepend(tmp_path)
    *right, last = map(run, tests)
    assert right == ["", ""]
    assert last == "" if not wrong else wrong in last and 'sums.py", line 22' in last


def test_a_module_that_needs_what_is_missing_is_left_alone(tmp_path):
    assert made_up(tmp_path, "lone", imported="surely_not_installed") == []
