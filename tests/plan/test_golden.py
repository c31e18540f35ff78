"""Parameter trees and shardings as kept in the repository: a change shows in review."""

import difflib
import shlex
from pathlib import Path

import pytest

from clara_jax.plan.__main__ import main

FOLDER = Path(__file__).resolve().parent.parent / "golden"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_layouts_are_as_written_down(path, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    kept = path.read_text(encoding="utf-8")
    command = kept.splitlines()[0].removeprefix("# ")
    assert main(shlex.split(command)[3:]) == 0
    found = capsys.readouterr().out
    changed = "\n".join(
        difflib.unified_diff(kept.splitlines(), found.splitlines(), n=0, lineterm="")
    )
    name = path.relative_to(repository)
    assert found == kept, f"if this is meant, run: {command} > {name}\n{changed}"


def test_there_are_golden_tables():
    assert {path.stem for path in FILES} >= {"tiny", "mistral_7b", "phi4_mini"}
