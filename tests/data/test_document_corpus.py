"""A corpus: documents by entry, checked whole before work on it begins."""

import json
import shutil

import pytest

from clara_jax.data import Corpus, Document, Reading, document_corpus, read_documents
from clara_jax.errors import ClaraError


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
        "Ada\nt", "7", "Ada", "a.jsonl:1", metadata={"year": 1900, "tags": ["x"]}
    )
    assert (first.start, first.stop, first.part, first.parts) == (0, 5, 1, 1)
    assert (second.id, second.label, third.id) == ("two", "two", "a.jsonl:3")
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "id": {"n": 1}}', "a.jsonl:1: 'id' must be"),
        ('{"text": "a", "id": true}', "a.jsonl:1: 'id' must be"),
        ('{"text": "a", "id": "\\ud800"}', "half of a surrogate"),
        ('{"text": "a", "more": ["\\ud800"]}', "half of a surrogate"),
        ('{"text": true}', "'text' must be a string"),
        ('{"text": "a", "title": {}}', "'title' must be a string"),
        ('{"docs": "a"}', "list of strings"),
        ("5", "neither 'text' nor 'docs'"),
    ],
)
def test_bad_records_are_refused_with_their_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ClaraError, match=message):
        read_documents([tmp_path / "a.jsonl"])


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
    left = Corpus([papers], reading=Reading(skip=True))
    assert [d.text for i in range(len(left)) for d in left[i]][-1] == "six"
    assert "z.jsonl:2: has the id 'x'" in left.notes[-1]


def test_hashes_that_agree_by_chance_are_no_ids_that_agree(papers, monkeypatch):
    monkeypatch.setattr(document_corpus, "_hash", len)
    assert Corpus([papers]).documents == 6


def test_every_entry_is_checked_at_once(papers):
    (papers / "lines.jsonl").write_text('{"text": "fine"}\n{"docs": 1}\n{"text": {}}')
    (papers / "raw.md").write_bytes(bytes(range(256)))
    with pytest.raises(ClaraError) as caught:
        Corpus([papers])
    first, *lines, last = str(caught.value).split("\n")
    assert first == "3 problems"
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == [
        "raw.md",
        "lines.jsonl:2",
        "lines.jsonl:3",
    ] or len(lines) == 3
    assert "--on-error skip" in last


def test_many_files_are_not_all_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(document_corpus, "OPEN", 2)
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text(f'{{"text": "t{i}"}}\n"u{i}"')
    corpus = Corpus([tmp_path])
    texts = [corpus[i][0].text for i in range(10)]
    assert texts == [f"{kind}{i}" for i in range(5) for kind in "tu"]
    assert corpus._rows.cache_info().currsize == 2


def test_checking_shows_its_progress(papers):
    seen = []

    def progress(entries):
        for entry in entries:
            seen.append(entry)
            yield entry

    Corpus([papers], progress)
    assert seen == [0, 1, 2, 3, 4]
