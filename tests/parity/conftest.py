"""Every parity test runs over every backbone folder of the reference numbers."""

from pathlib import Path

import pytest

from tests.conftest import oracle_folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backbone_dir" not in metafunc.fixturenames:
        return
    folder = oracle_folder(metafunc.config)
    found: list[Path] = []
    if folder is not None:
        found = sorted(path.parent for path in folder.glob("*/meta.json"))
    skip = pytest.mark.skip(reason="no reference numbers; give --oracle DIR")
    metafunc.parametrize(
        "backbone_dir",
        found or [pytest.param(None, marks=skip)],
        ids=[path.name for path in found] or ["none"],
        scope="session",
    )
