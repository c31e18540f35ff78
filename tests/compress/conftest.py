"""A toy model, a corpus of its words, a store of it, and what a store holds."""

import json
import shutil

import numpy as np
import pytest
from toy_folder import write_toy

from clara_jax.compress.__main__ import main
from clara_jax.search import Store
from tests.compress.command_line import SMALL, job_files

WORDS = "Ada Bell was born in Corin Edo Falk studied Gemma Hana Iver Jory .".split()
COUNT = 23


def sentences(rng, count):
    return " ".join(" ".join(rng.choice(WORDS[:-1], 5)) + " ." for _ in range(count))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("compress") / "model")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder: short documents, long ones that are split, one of `docs`, others."""
    folder = tmp_path_factory.mktemp("compress") / "corpus"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [
        {"id": f"d{i}", "title": "Ada Bell", "text": sentences(rng, 1), "year": i}
        for i in range(COUNT - 3)
    ]
    lines[3]["text"] = sentences(rng, 4)
    lines[5]["text"] += " quantum"
    lines.append({"docs": [sentences(rng, 1), sentences(rng, 2)]})
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "more" / "long.md").write_text(sentences(rng, 12))
    (folder / "picture.png").write_text("no text")
    return folder


@pytest.fixture(scope="session")
def whole(model, corpus, tmp_path_factory):
    """A finished store; copy it before changing it."""
    store = tmp_path_factory.mktemp("compress") / "whole"
    arguments = ("--model", model, "--corpus", corpus, "--store", store, *SMALL)
    assert main([str(a) for a in arguments]) == 0
    return store


@pytest.fixture
def copy(whole, tmp_path):
    # As deep as the original, which names its model by the way there.
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture(scope="session")
def content_of():
    """All that a store holds, its row ids included, and notes of unfinished work."""

    def read(place):
        store = Store.open(place)
        table = store.dataset.scanner(with_row_id=True).to_table().sort_by("_rowid")
        return store.settings, table, job_files(place)

    return read
