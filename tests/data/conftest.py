"""A small world of sources, and the mix of them."""

import pytest
from toy_mix import make, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Sources that share passages in every way that there is."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def made(world, tmp_path_factory):
    """The folder of a mix of them, and its manifest."""
    folder = tmp_path_factory.mktemp("made") / "mix"
    return folder, make(world, folder)
