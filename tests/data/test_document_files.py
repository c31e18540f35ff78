"""Which files are documents, and of what kind."""

import gzip
import os

import pytest

from clara_jax.data import Corpus
from clara_jax.data.document_files import find_files


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
        "notes.mp3": "other",
        "a/script.py": "other",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    os.symlink(root, root / "a" / "circle")
    return root


def test_folders_are_read_in_the_order_of_their_names(folder):
    found = find_files([folder])
    names = [file.name for file in found.files]
    assert names == ["a/y.jsonl", "a/z.txt", "b.md", "c.json"]
    assert found.others == ["a/script.py", "notes.mp3"]
    assert not found.problems
    texts = [document.text for document in Corpus([folder]).all()]
    assert texts == "line one,line three,first,second,four,five,six".split(",")
    both = Corpus([folder / "c.json", folder / "a" / "z.txt"]).all()
    assert [document.text for document in both] == ["four", "five", "six", "first"]


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_of_a_beir_data_set_the_corpus_is_taken(tmp_path):
    line = '{"_id": "1", "title": "", "text": "t", "metadata": {}}'
    write(tmp_path, sci__corpus_jsonl=line, sci__queries_jsonl=line)
    write(tmp_path, sci__qrels__test_tsv="query-id\tcorpus-id\tscore\n1\t1\t1\n")
    write(tmp_path, more__queries_jsonl=line)
    found = find_files([tmp_path])
    assert [f.name for f in found.files] == ["more/queries.jsonl", "sci/corpus.jsonl"]
    assert found.others == ["sci/qrels/test.tsv", "sci/queries.jsonl"]


@pytest.mark.parametrize(
    ("corpus", "questions"),
    [
        (
            "corpus/corpus-0-of-1.parquet",
            "queries/queries-0-of-1.parquet",
        ),
        ("corpus.jsonl.gz", "queries.jsonl.gz"),
        ("collection.tsv", "queries.train.tsv"),
    ],
)
def test_of_other_sets_for_retrieval_too(tmp_path, corpus, questions):
    for name in (corpus, questions):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text("x")
    found = find_files([tmp_path])
    assert [f.name for f in found.files] == [f"x/{corpus}"]
    assert found.others == [f"x/{questions}"]


def test_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "~$b.docx").write_text("a lock")
    (tmp_path / "old.doc").write_text("old")
    found = find_files([tmp_path, tmp_path / "pipe", ""])
    assert [f.name for f in found.files] == ["a.md"] and found.others == ["pipe"]
    ends = [
        "pipe.md: is not a plain file; save it to one",
        "pipe: is not a plain file; save it to one",
        "old.doc: .doc is not read; save it as .docx or PDF",
        "the name of a file or folder of documents is empty",
    ]
    assert len(found.problems) == len(ends)
    for end in ends:
        assert any(problem.endswith(end) for problem in found.problems)


def test_files_of_one_name_keep_apart_and_one_file_is_taken_once(tmp_path):
    write(tmp_path, a__x_md="one", b__x_md="two", c__y_md="three")
    a, b = tmp_path / "a" / "x.md", tmp_path / "b" / "x.md"
    c = tmp_path / "c"
    found = find_files([a, b, c, c / "y.md", c / ".." / "c", tmp_path / "a" / ".."])
    assert [f.name for f in found.files] == [a.as_posix(), b.as_posix(), "y.md"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("README", "Hello", "text"),
        ("notes.log", "2024: x", "text"),
        ("rows", ' \n{"text": "a"}', "rows"),
        ("rows.dat", '\ufeff[{"text": "a"}]', "rows"),
        ("A.MD", "{{ tag }}", "text"),
        ("a.pdf", "", "office"),
        ("a.Csv", "text\n1", "rows"),
    ],
)
def test_files_that_are_given_are_taken_whatever_they_are_called(
    tmp_path, name, content, kind
):
    (tmp_path / name).write_text(content)
    (file,) = find_files([tmp_path / name]).files
    assert file.kind == kind


def test_compressed_texts(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("één".encode()))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"two"))
    (file,) = find_files([tmp_path]).files
    assert file.name == "a.txt.gz"
    texts = [d.text for d in Corpus([tmp_path / "a.txt.gz", tmp_path / "b.gz"]).all()]
    assert texts == ["één", "two"]


def test_what_cannot_be_looked_at_is_a_problem(tmp_path):
    (tmp_path / "raw").mkdir()
    with open(os.fsencode(tmp_path) + b"/raw/caf\xe9.txt", "w") as file:
        file.write("x")
    os.symlink(tmp_path / "nowhere", tmp_path / "raw" / "gone.md")
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    found = find_files([tmp_path / "raw", tmp_path / "empty", tmp_path / "no.txt"])
    assert not found.files
    ends = [
        "is not UTF-8",
        "a file that is not there",
        "holds no files of",
        "no such file",
    ]
    assert len(found.problems) == len(ends)
    for end in ends:
        assert any(end in problem for problem in found.problems)
