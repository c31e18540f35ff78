"""Files of records: reproducible, whole, and readable by every stage."""

import json

import pytest

from clara_jax.config import DataConfig, MemoryConfig
from clara_jax.data import open_records
from clara_jax.data.examples import ExampleMaker
from clara_jax.errors import ClaraError
from clara_jax.synthesize import prepare, world
from clara_jax.synthesize.tokenizer import make_tokenizer
from clara_jax.text import ClaraTokenizer

SMALL = {
    "scp": 30,
    "instruct": 20,
    "end_to_end": 40,
    "held_out": 20,
    "candidates": 5,
    "alike": 2,
}
MEMORY = MemoryConfig(doc_max_length=34, compression_rate=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("world"), SMALL)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_settings_give_the_same_bytes(folder, tmp_path):
    again = prepare(tmp_path, SMALL)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    prepare(tmp_path, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in again.iterdir()}


def test_other_settings_are_refused(folder):
    with pytest.raises(ClaraError, match="holds other data"):
        prepare(folder.parent, {**SMALL, "seed": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scpp": 3}, "synthesize.scpp"),
        ({"records": "all"}, "stages, pretraining or encyclopedia"),
        ({"held_out": 0}, "at least 1"),
        ({"candidates": 300}, "synthesize.candidates"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ClaraError, match=message):
        prepare(tmp_path, settings)
    assert not list(tmp_path.iterdir())


def test_no_held_out_name_is_in_training(folder, tmp_path):
    texts = [(folder / f"{s}.jsonl").read_text() for s in ("scp", "instruct")]
    texts += [(folder / "end_to_end.jsonl").read_text()]
    base = prepare(tmp_path, {"records": "pretraining", "pretraining": 200})
    texts += [(base / "pretraining.jsonl").read_text()]
    held = world.names(True)
    for text in texts:
        assert not [name for name in held if name in text]


def test_one_candidate_alone_is_right(folder):
    held = world.names(True)
    for row in rows(folder / "held_out.jsonl"):
        assert len(row["docs"]) == 5
        name = next(name for name in held if name in row["question"])
        right = [i for i, text in enumerate(row["docs"]) if name in text]
        assert right == row["pos_index"]
        assert row["answer"] in row["docs"][right[0]]


def test_the_corpus_holds_every_document_that_is_asked_about_once(folder):
    corpus = rows(folder / "corpus.jsonl")
    assert len(corpus) == len({row["id"] for row in corpus}) == 28 * 28
    texts = {row["text"] for row in corpus}
    assert len(texts) == len(corpus)
    for name in ("end_to_end", "held_out"):
        for row in rows(folder / f"{name}.jsonl"):
            assert texts.issuperset(row["docs"])
    assert texts > {row["text"] for row in rows(folder / "documents.jsonl")}


@pytest.mark.parametrize(
    ("stage", "file", "longest"),
    [
        ("scp", "scp", 72),
        ("instruct", "instruct", 36),
        ("instruct", "held_out", 36),
        ("end_to_end", "end_to_end", 36),
    ],
)
def test_stages_read_the_files_uncut(folder, stage, file, longest):
    data = DataConfig(prompt_max_length=longest, question_max_length=12)
    tokenizer = ClaraTokenizer(make_tokenizer(), MEMORY.num_memory)
    make = ExampleMaker(tokenizer, stage, MEMORY, data, top_k=1)
    for record in open_records(folder / f"{file}.jsonl"):
        example = make(record)
        assert example.prompt[-1] == tokenizer.eos_id
        assert all(
            tokenizer.document_length(text) <= MEMORY.doc_max_length
            for text in record.documents
        )


def test_command(tmp_path, capsys):
    from clara_jax.synthesize.__main__ import main

    few = ["--scp", "3", "--instruct", "2", "--end-to-end", "4", "--held-out", "5"]
    assert main([str(tmp_path), *few]) == 0
    assert "held_out.jsonl: 5 records" in capsys.readouterr().out
    assert main([str(tmp_path), *few, "--seed", "1"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
