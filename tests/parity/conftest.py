"""Every parity test runs over every backbone folder of the reference numbers."""

from pathlib import Path

import pytest

from tests.conftest import oracle_folder


def is_backbone(folder: Path) -> bool:
    """Any sign counts, so that an incomplete folder fails instead of going unseen."""
    signs = ("meta.json", "base", "stage1", "stage1_qa.json", "stage1_qa.npz")
    return any((folder / sign).exists() for sign in signs)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, before items are chosen by their marks."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("parity")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backbone_dir" not in metafunc.fixturenames:
        return
    folder = oracle_folder(metafunc.config)
    found: list[Path] = []
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if is_backbone(path))
    skip = pytest.mark.skip(reason="no reference numbers; give --oracle DIR")
    metafunc.parametrize(
        "backbone_dir",
        found or [pytest.param(None, marks=skip)],
        ids=[path.name for path in found] or ["none"],
        scope="session",
    )
