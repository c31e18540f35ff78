"""A corpus: documents by entry, checked whole before work on it begins."""

import json
import os
import shutil

import pytest

from clara_jax.data import Corpus, Document, Reading, document_corpus
from clara_jax.errors import ClaraError


def test_fields_of_an_object(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": " t ", "title": " Ada ", "id": 7, "year": 1900, "tags": ["x"]},
        {"_id": "two", "text": "only"},
        {"id": None, "title": None, "text": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = Corpus([path]).all()
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
        ("5", "is neither a text nor an object"),
    ],
)
def test_bad_records_are_refused_with_their_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ClaraError, match=message):
        Corpus([tmp_path / "a.jsonl"]).all()


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
    (papers / "raw.md").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(ClaraError) as caught:
        Corpus([papers])
    first, *lines = str(caught.value).split("\n")
    assert first == "3 problems (--on-error skip leaves them out):"
    starts = ["lines.jsonl:2: 'docs' must", "lines.jsonl:3: 'text'", "raw.md: is not"]
    assert all(start in line for start, line in zip(starts, lines, strict=True))


def test_many_files_are_not_all_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(document_corpus, "OPEN", 2)
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text(f'{{"text": "t{i}"}}\n"u{i}"')
    corpus = Corpus([tmp_path])
    texts = [corpus[i][0].text for i in range(10)]
    assert texts == [f"{kind}{i}" for i in range(5) for kind in "tu"]
    assert corpus._opened.cache_info().currsize == 2


def test_checking_shows_its_progress(papers):
    seen = []

    def progress(entries):
        seen.append(list(entries))
        yield from entries

    Corpus([papers], progress)
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4]]


def read(path, **reading):
    """The documents of a corpus, as (id, title, text), and its notes."""
    corpus = Corpus([path], reading=Reading(**reading))
    return [(d.id, d.title, d.text) for d in corpus.all()], corpus.notes


def lay(root, **files):
    """Write files, whose names have _ for a dot and __ for a slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(raw)
    return root


def test_a_folder_as_it_lies(tmp_path):
    """Blank pages and settings are left out and named, encodings are recognised."""
    lay(tmp_path, old_txt="Où est l’été? Là-bas.".encode("cp1252"), empty_md=" \n")
    lay(tmp_path, x_md="---\ntitle: Leave\ntags: [a, b]\n---\n{% note %} Take it.\n")
    (tmp_path / "_category_.json").write_text('{"label": "x"}')
    (tmp_path / "settings.json").write_text('{\n  "label": "x"\n}')
    lay(tmp_path, costs_csv="year,cost\n2020,7\n")
    found, notes = read(tmp_path)
    assert found == [
        ("old.txt", "old.txt", "Où est l’été? Là-bas."),
        ("x.md", "Leave", "Leave\n{% note %} Take it."),
    ]
    assert notes == [
        "left out, since not documents: _category_.json, costs.csv, settings.json",
        "left out, since blank: empty.md",
        "read as cp1252, since not UTF-8: old.txt; if this is wrong, name it with "
        "--encoding",
    ]
    corpus = Corpus([tmp_path])
    assert corpus[1][0].metadata == {"tags": ["a", "b"]}
    # Given by its name, a file is meant.
    with pytest.raises(ClaraError, match=r"fields: label\); name .* --text-field"):
        Corpus([tmp_path / "_category_.json"])
    # A named encoding is that of files which are not UTF-8.
    found, _ = read(tmp_path, encoding="cp1250")
    assert [text for *_, text in found] == [
        "Oů est l’été? Lŕ-bas.",
        "Leave\n{% note %} Take it.",
    ]


SETTINGS = {
    "versions": '["2.0.0", "1.0.0"]',
    "sidebars": '{"docs": {"a": ["b"]}}',
    "tsconfig": '{\n  // all\n  "strict": true,\n}',
    "search_index": '{"docs": [{"title": "a", "text": "b"}]}',
    "nav": '[{"url": "/a"}, {"url": "/b"}]',
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_not_documents(tmp_path, name):
    lay(tmp_path, a_md="x")
    (tmp_path / f"{name}.json").write_text(SETTINGS[name])
    found, notes = read(tmp_path)
    assert [text for *_, text in found] == ["x"]
    assert notes == [f"left out, since not documents: {name}.json"]


def test_files_that_hold_nothing_are_blank(tmp_path):
    lay(tmp_path, a_md="x", b_jsonl="", c_csv="id,text\n", d_json="[]")
    assert read(tmp_path)[1] == ["left out, since blank: b.jsonl, c.csv, d.json"]


def test_empty_cells_are_blank_documents(tmp_path):
    lay(tmp_path, a_csv="id,Text,year\n7,,1\n8,x,\n9,y,2\n")
    found, notes = read(tmp_path)
    assert found == [("8", "", "x"), ("9", "", "y")]
    assert notes == ["left out, since blank: a.csv:2"]
    assert Corpus([tmp_path])[1][0].metadata == {"year": 2}


def test_a_title_with_a_text_that_is_not_known_is_not_a_document(tmp_path):
    row = {"id": 1, "title": "Deep nets", "summary": "We show that " + "words " * 20}
    lay(tmp_path, a_jsonl=json.dumps(row))
    with pytest.raises(ClaraError, match=r"a.jsonl:1: has no 'text' \(fields: id, tit"):
        Corpus([tmp_path])
    assert read(tmp_path, text="summary")[0][0][2].startswith("Deep nets\nWe show")


def test_several_texts_keep_id_and_fields(tmp_path):
    row = {"docs": ["a", "b"], "id": 7, "title": "T", "year": 2020}
    (found,) = (d for d in Corpus([lay(tmp_path, a_jsonl=json.dumps(row))]).all()[1:])
    assert (found.id, found.title, found.text) == ("7#2", "T", "b")
    assert found.metadata == {"year": 2020}


BLANK = '{"_id":"2","title":"Only a title","text":""}\n{"text":" "}\n{"docs":["a",""]}'


def test_blank_documents_are_counted_and_a_title_is_a_document(tmp_path):
    found, notes = read(lay(tmp_path, a_jsonl=BLANK))
    assert found == [("2", "Only a title", "Only a title"), ("a.jsonl:3#1", "", "a")]
    assert notes == ["left out, since blank: a.jsonl:2, a.jsonl:3"]


ROWS = {
    "beir": {"_id": 7, "title": "T", "text": "t", "metadata": {}},
    "pyserini": {"id": 7, "title": "T", "contents": "t"},
    "flashrag": {"id": 7, "contents": '"T"\nt'},
    "dpr": {"id": 7, "text": "t", "title": "T"},
    "kilt": {"_id": "7", "wikipedia_title": "T", "text": ["T\n", "t", " \n"]},
    "capitals": {"ID": 7, "Title": "T", "Text": "t"},
    "arxiv": {"id": 7, "title": "T", "abstract": "t"},
    "docid": {"docid": "7", "title": "T", "body": "t"},
}


@pytest.mark.parametrize("layout", ROWS)
def test_fields_of_known_layouts(tmp_path, layout):
    found, _ = read(lay(tmp_path, a_jsonl=json.dumps(ROWS[layout])))
    assert found == [("7", "T", "T\nt")]
    corpus = Corpus([tmp_path])
    assert not corpus.fields, "names of fields are not taken for metadata"


def test_fields_of_other_layouts_are_named(tmp_path):
    lay(tmp_path, a_csv="nr,name,abstract,text,year\n7,T,t,x,2020\n8,,u,y,2021\n")
    how = {"text": "abstract", "title": "name", "id": "nr"}
    assert read(tmp_path, **how)[0] == [("7", "T", "T\nt"), ("8", "", "u")]
    assert Corpus([tmp_path], reading=Reading(**how)).fields["year"] == "int"
    assert (
        Corpus([tmp_path]).digest != Corpus([tmp_path], reading=Reading(**how)).digest
    )


def test_texts_as_they_come(tmp_path):
    lay(tmp_path, crlf_txt=b"\xef\xbb\xbfone\r\ntwo\rthree", nul_txt="a\0b" + "c" * 99)
    lay(tmp_path, rtl_txt="שלום עולם", wide_txt="été".encode("utf-16"))
    texts = [text for _, _, text in read(tmp_path)[0]]
    assert texts == ["one\ntwo\nthree", "a b" + "c" * 99, "שלום עולם", "été"]
    lay(tmp_path, raw_txt=b"ab\0\1" * 50)
    with pytest.raises(ClaraError, match=r"raw.txt: holds NUL bytes"):
        Corpus([tmp_path])


HEADS = [
    ("---\ntitle: A\n---\n# A\nx", "A", "# A\nx", {}),
    ("---\ntitle: A\n---\n# B\nx", "A", "A\n# B\nx", {}),
    ("---\ntitle: A\ndate: 2024-02-29\n---\n", "A", "A", {"date": "2024-02-29"}),
    ('+++\ntitle = "A"\nn = 1\n+++\nx', "A", "A\nx", {"n": 1}),
    ("---\ntitle: A: b\n---\nx", "A: b", "A: b\n---\ntitle: A: b\n---\nx", {}),
    ("---\n: {{ x }}: [\n---\nx", "a.md", "---\n: {{ x }}: [\n---\nx", {}),
    ("---\nno fields\n---\nx", "a.md", "---\nno fields\n---\nx", {}),
    ("---\n\nA rule, and no end", "a.md", "---\n\nA rule, and no end", {}),
]


@pytest.mark.parametrize(("text", "title", "whole", "metadata"), HEADS)
def test_front_matter(tmp_path, text, title, whole, metadata):
    (found,) = Corpus([lay(tmp_path, a_md=text) / "a.md"]).all()
    assert (found.title, found.text, found.metadata) == (title, whole, metadata)


def test_long_documents_make_several_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(document_corpus, "BLOCK", 40)
    words = "".join(f"word{i} " for i in range(30))
    lay(tmp_path, a_txt=words, b_jsonl=json.dumps({"text": "x" * 100, "id": "x"}))
    corpus = Corpus([tmp_path])
    assert len(corpus) == 9 and corpus.documents == 9
    entries = [corpus[i] for i in (8, 0, 3, 1, 2, 4, 5, 6, 7)]
    documents = sorted((d for e in entries for d in e), key=lambda d: (d.id, d.start))
    assert "".join(d.text for d in documents) == words + "x" * 100
    assert all(d.stop - d.start == len(d.text) <= 40 for d in documents)
    assert documents[1].label == f"a.txt, characters {documents[1].start + 1} to 74"
    assert {d.id for d in documents} == {"a.txt", "x"}
    assert [corpus.texts(i, i + 1)[0] for i in range(9)] == [d.text for d in documents]


def test_files_that_change_or_vanish_meanwhile(tmp_path):
    lay(tmp_path, a_txt="one", b_jsonl='{"text": "two"}', c_txt="three")
    corpus = Corpus([tmp_path])
    (tmp_path / "a.txt").write_text("other")
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(ClaraError, match=r"a.txt: has changed since work on it began"):
        corpus[0]
    with pytest.raises(ClaraError, match=r"b.jsonl: No such file"):
        corpus[1]
    assert corpus[2][0].text == "three"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_right_to_read(tmp_path):
    lay(tmp_path, a_txt="one", sub__b_txt="two")
    (tmp_path / "a.txt").chmod(0)
    (tmp_path / "sub").chmod(0)
    with pytest.raises(ClaraError) as caught:
        Corpus([tmp_path])
    (tmp_path / "sub").chmod(0o700)
    assert str(caught.value).count("Permission denied") == 2


def test_a_row_that_is_wrong_is_left_out_alone(tmp_path):
    lay(tmp_path, a_jsonl='{"text": "a"}\n{"text": \n{"text": "b"}')
    found, notes = read(tmp_path, skip=True)
    assert [text for *_, text in found] == ["a", "b"]
    assert len(notes) == 1 and "a.jsonl:2: is not JSON" in notes[0]
    lay(tmp_path, a_jsonl='{"text"\n{"text": "b"}\n{"id": 1}')
    found, notes = read(tmp_path, skip=True)
    assert [text for *_, text in found] == ["b"]
    assert "2 problems:" in notes[0] and "a.jsonl:3: has no 'text'" in notes[0]
