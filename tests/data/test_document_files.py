"""Files and folders of documents, JSON objects of documents, a corpus by entry."""

import json
import os
import shutil

import pytest

from clara_jax.data import Corpus, Document, find_files, read_documents
from clara_jax.data import document_files as corpus_file
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


@pytest.fixture
def papers(tmp_path):
    root = tmp_path / "papers"
    (root / "a").mkdir(parents=True)
    (root / "a" / "notes.md").write_text("some notes")
    lines = [{"text": "one", "id": "x"}, {"text": "two", "year": 2}]
    (root / "lines.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    (root / "more.json").write_text('[{"docs": ["three", "four"]}, "five"]')
    return root


def test_entries_have_ids_and_sources_whatever_the_folder_is_called(papers):
    corpus = Corpus([papers])
    assert len(corpus) == 5 and corpus.documents == 6
    found = [corpus[i] for i in (4, 0, 3, 1, 2)]  # in any order
    assert [[(d.text, d.id, d.source) for d in entry] for entry in found] == [
        [("five", "more.json:2", "more.json: record 2")],
        [("some notes", "a/notes.md", "a/notes.md")],
        [
            ("three", "more.json:1#1", "more.json: record 1"),
            ("four", "more.json:1#2", "more.json: record 1"),
        ],
        [("one", "x", "lines.jsonl:1")],
        [("two", "lines.jsonl:3", "lines.jsonl:3")],
    ]
    assert corpus[2][0].metadata == {"year": 2}
    assert corpus.place(2) == f"{papers / 'lines.jsonl'}:3"
    assert corpus.lengths.tolist() == [10, 3, 3, 9, 4]
    texts = ["some notes", "one", "two", "three", "four", "five"]
    for begin, end in ((0, 6), (2, 4), (4, 5), (5, 9), (3, 3)):
        assert corpus.texts(begin, end) == texts[begin:end]
    with pytest.raises(IndexError):
        corpus[5]


def test_the_digest_knows_names_and_contents_and_not_the_place(papers, tmp_path):
    before = Corpus([papers])
    moved = tmp_path / "moved"
    shutil.copytree(papers, moved)
    assert Corpus([moved]).digest == before.digest
    assert Corpus([moved]).size == before.size
    path = moved / "a" / "notes.md"
    path.write_text("some nodes")
    assert Corpus([moved]).digest != before.digest
    path.write_text("some notes")
    path.rename(moved / "a" / "nodes.md")
    assert Corpus([moved]).digest != before.digest
    assert Corpus([papers / "a", papers]).digest != before.digest


def test_two_documents_of_one_id_are_refused(papers, tmp_path):
    (papers / "z.jsonl").write_text('{"text": "six"}\n{"text": "seven", "id": "x"}')
    with pytest.raises(ClaraError) as caught:
        Corpus([papers])
    assert f"{papers / 'z.jsonl'}:2: has the id 'x'" in str(caught.value)
    assert f"as has {papers / 'lines.jsonl'}:1" in str(caught.value)
    other = tmp_path / "notes.md"
    other.write_text("of the same name")
    with pytest.raises(ClaraError, match="has the id 'notes.md'"):
        Corpus([other, papers / "a" / "notes.md"])
    with pytest.raises(ClaraError, match="has the id"):
        Corpus([papers / "more.json", papers / "more.json"])


def test_hashes_that_agree_by_chance_are_no_ids_that_agree(papers, monkeypatch):
    monkeypatch.setattr(corpus_file, "_hash", len)
    assert Corpus([papers]).documents == 6


def test_every_entry_is_checked_at_once(papers):
    (papers / "lines.jsonl").write_text('{"text": "fine"}\n{"text": ""}')
    with pytest.raises(ClaraError, match=r"lines.jsonl:2: the document is empty"):
        Corpus([papers])


def test_many_files_are_not_all_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_file, "OPEN", 2)
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text(f'{{"text": "t{i}"}}\n"u{i}"')
    corpus = Corpus([tmp_path])
    texts = [corpus[i][0].text for i in range(10)]
    assert texts == [f"{kind}{i}" for i in range(5) for kind in "tu"]
    assert corpus._json.cache_info().currsize == 2


def test_checking_shows_its_progress(papers):
    seen = []

    def progress(entries):
        for entry in entries:
            seen.append(entry)
            yield entry

    Corpus([papers], progress)
    assert seen == [0, 1, 2, 3, 4]
