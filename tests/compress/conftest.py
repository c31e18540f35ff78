"""A toy model, a corpus of its words, and stores compared byte for byte."""

import json

import numpy as np
import pytest
from toy_folder import write_toy

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
def bytes_of():
    """Contents of all files below a folder."""

    def read(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files
        }

    return read
