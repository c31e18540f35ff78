"""A corpus by entry: ids, sources, checks, a digest that knows its contents."""

import json
import shutil

import pytest

from clara_jax.data import Corpus, collection
from clara_jax.errors import ClaraError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "papers"
    (root / "a").mkdir(parents=True)
    (root / "a" / "notes.md").write_text("some notes")
    lines = [{"text": "one", "id": "x"}, {"text": "two", "year": 2}]
    (root / "lines.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    (root / "more.json").write_text('[{"docs": ["three", "four"]}, "five"]')
    return root


def test_entries_have_ids_and_sources_whatever_the_folder_is_called(folder):
    corpus = Corpus([folder])
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
    assert corpus.place(2) == f"{folder / 'lines.jsonl'}:3"
    assert corpus.lengths.tolist() == [10, 3, 3, 9, 4]
    texts = ["some notes", "one", "two", "three", "four", "five"]
    for begin, end in ((0, 6), (2, 4), (4, 5), (5, 9), (3, 3)):
        assert corpus.texts(begin, end) == texts[begin:end]
    with pytest.raises(IndexError):
        corpus[5]


def test_the_digest_knows_names_and_contents_and_not_the_place(folder, tmp_path):
    before = Corpus([folder])
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert Corpus([moved]).digest == before.digest
    assert Corpus([moved]).size == before.size
    path = moved / "a" / "notes.md"
    path.write_text("some nodes")
    assert Corpus([moved]).digest != before.digest
    path.write_text("some notes")
    path.rename(moved / "a" / "nodes.md")
    assert Corpus([moved]).digest != before.digest
    assert Corpus([folder / "a", folder]).digest != before.digest


def test_two_documents_of_one_id_are_refused(folder, tmp_path):
    (folder / "z.jsonl").write_text('{"text": "six"}\n{"text": "seven", "id": "x"}')
    with pytest.raises(ClaraError) as caught:
        Corpus([folder])
    assert f"{folder / 'z.jsonl'}:2: has the id 'x'" in str(caught.value)
    assert f"as has {folder / 'lines.jsonl'}:1" in str(caught.value)
    other = tmp_path / "notes.md"
    other.write_text("of the same name")
    with pytest.raises(ClaraError, match="has the id 'notes.md'"):
        Corpus([other, folder / "a" / "notes.md"])
    with pytest.raises(ClaraError, match="has the id"):
        Corpus([folder / "more.json", folder / "more.json"])


def test_hashes_that_agree_by_chance_are_no_ids_that_agree(folder, monkeypatch):
    monkeypatch.setattr(collection, "_hash", len)
    assert Corpus([folder]).documents == 6


def test_every_entry_is_checked_at_once(folder):
    (folder / "lines.jsonl").write_text('{"text": "fine"}\n{"text": ""}')
    with pytest.raises(ClaraError, match=r"lines.jsonl:2: the document is empty"):
        Corpus([folder])


def test_many_files_are_not_all_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "OPEN", 2)
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text(f'{{"text": "t{i}"}}\n"u{i}"')
    corpus = Corpus([tmp_path])
    texts = [corpus[i][0].text for i in range(10)]
    assert texts == [f"{kind}{i}" for i in range(5) for kind in "tu"]
    assert corpus._json.cache_info().currsize == 2


def test_checking_shows_its_progress(folder):
    seen = []

    def progress(entries):
        for entry in entries:
            seen.append(entry)
            yield entry

    Corpus([folder], progress)
    assert seen == [0, 1, 2, 3, 4]
