"""Files and folders of documents, and what a JSON object may hold."""

import json
import os

import pytest

from clara_jax.data import Document, find_files, read_documents
from clara_jax.errors import ClaraError


@pytest.fixture
def folder(tmp_path):
    """A folder with documents, hidden ones, others and a circle."""
    root = tmp_path / "papers"
    for name, text in {
        "b.md": "second",
        "a/z.txt": "first",
        "a/y.jsonl": '{"text": "line one"}\n\n{"text": "line three"}\n',
        "c.json": '[{"docs": ["four", "five"]}, "six"]',
        ".git/x.txt": "hidden",
        ".hidden.md": "hidden",
        "notes.pdf": "other",
        "a/script.py": "other",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    os.symlink(root, root / "a" / "circle")
    return root


def test_folders_are_read_in_the_order_of_their_names(folder):
    files, others = find_files([folder])
    assert [file.name for file in files] == ["a/y.jsonl", "a/z.txt", "b.md", "c.json"]
    assert [path.name for path in others] == ["script.py", "notes.pdf"]
    texts = [document.text for document in read_documents([folder])]
    assert texts == "line one,line three,first,second,four,five,six".split(",")
    both = read_documents([folder / "c.json", folder / "a" / "z.txt"])
    assert [document.text for document in both] == ["four", "five", "six", "first"]


def test_fields_of_an_object(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": " t ", "title": " Ada ", "id": 7, "year": 1900, "tags": ["x"]},
        {"_id": "two", "text": "only"},
        {"id": None, "title": None, "text": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = read_documents([path])
    assert first == Document(
        "Ada\nt", "7", "Ada", f"{path}:1", metadata={"year": 1900, "tags": ["x"]}
    )
    assert (first.start, first.stop, first.part, first.parts) == (0, 5, 1, 1)
    assert (second.id, second.label, third.id) == ("two", "two", "")
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "id": {"n": 1}}', "a.jsonl:1: 'id' must be"),
        ('{"text": "a", "id": true}', "a.jsonl:1: 'id' must be"),
        ('{"text": "a", "id": "\\ud800"}', "half of a surrogate"),
        ('{"text": "a", "more": ["\\ud800"]}', "half of a surrogate"),
        ('{"text": 5}', "must be strings"),
        ('{"docs": "a"}', "list of strings"),
        ('{"docs": ["a", " "]}', "empty or blank"),
        ("5", "neither 'text' nor 'docs'"),
    ],
)
def test_bad_records_are_refused_with_their_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ClaraError, match=message):
        read_documents([tmp_path / "a.jsonl"])


def test_places_without_documents_are_refused(tmp_path):
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "empty" / "a.pdf").write_text("x")
    with pytest.raises(ClaraError, match=r"empty: the folder holds no .*\.jsonl"):
        read_documents([tmp_path / "empty"])
    with pytest.raises(ClaraError, match="no.txt: no such file or folder"):
        read_documents([tmp_path / "no.txt"])
    with pytest.raises(ClaraError, match="there are no documents"):
        read_documents([])
    os.makedirs(os.fsencode(tmp_path) + b"/raw")
    with open(os.fsencode(tmp_path) + b"/raw/caf\xe9.txt", "w") as file:
        file.write("x")
    with pytest.raises(ClaraError, match="the file's name is no UTF-8"):
        read_documents([tmp_path / "raw"])
