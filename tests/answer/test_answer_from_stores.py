"""The command over a store: the same answers as over files, places, refusals."""

import io
import json

import pytest
from toy_folder import DOCUMENTS, QUESTION, write_toy
from toy_store import write_store

from clara_jax import load
from clara_jax.answer.__main__ import main
from clara_jax.clara import vector_fingerprint
from clara_jax.data import Corpus
from clara_jax.documents import Document
from clara_jax.search import Store, StoreSettings, compact, delete
from clara_jax.search.hybrid import index_words
from clara_jax.search.scann_index import build_index


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_toy(tmp_path_factory.mktemp("stores") / "run")
    lines = [json.dumps(document) for document in DOCUMENTS]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    return folder


def make_store(run_folder, path, **changes):
    clara = load(run_folder)
    documents = Corpus([run_folder / "documents.jsonl"]).all()
    pieces = [
        Document(
            text=document.text,
            id=document.id or f"id{i}",
            title=document.title,
            source=document.source,
            start=0 if i else 20,
            stop=len(document.text) if i else 20 + len(document.text),
            part=1 if i else 2,
            parts=1 if i else 3,
            metadata={"year": 2018 + i, "team": "legal"} if i else {},
        )
        for i, document in enumerate(documents)
    ]
    settings = {
        "fingerprint": vector_fingerprint(clara.network),
        "model": "../run",
        "base": "",
        "memory": clara.memory,
        "width": clara.network.model.config.width,
    }
    vectors = clara.compress([piece.text for piece in pieces])
    return write_store(
        path, StoreSettings(**{**settings, **changes}), vectors, pieces, 2
    )


@pytest.fixture(scope="module")
def store(model):
    return make_store(model, model.parent / "store").place


def run(capsys, *arguments):
    status = main([str(a) for a in (*arguments, "--max-new-tokens", 3)])
    return status, *capsys.readouterr()


def error(capsys, *arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_store_gives_the_answers_of_its_files(model, store, capsys):
    status, out, err = run(capsys, "--store", store, "--json", QUESTION)
    assert status == 0, err
    found = json.loads(out)
    run(capsys, "--model", model, QUESTION)  # the model is found without a name, too
    _, out, _ = run(capsys, "--model", model, "--json", QUESTION)
    wanted = json.loads(out)
    assert found["answer"] == wanted["answer"]
    for mine, theirs in zip(found["documents"], wanted["documents"], strict=True):
        assert mine["text"] == theirs["text"]
        # The store's vectors are rounded to bfloat16.
        assert mine["score"] == pytest.approx(theirs["score"], abs=4e-3)
    assert set(found["seconds"]) == {"reason", "search", "gather", "prefill", "decode"}


def test_sources_are_told_with_their_places(store, capsys):
    status, out, err = run(capsys, "--store", store, "--top-k", 3, "--stream", QUESTION)
    assert status == 0, err
    assert out.startswith("3 documents in ")
    assert "Ada Bell (part 2 of 3)  (" in out
    assert "documents.jsonl:1, characters 20-" in out
    assert "\n     Edo Falk" in out  # the beginning of its text
    assert "search " in out and "gather " in out


def test_deleted_documents_are_not_found(model, tmp_path, capsys):
    path = make_store(model, tmp_path / "store", model=str(model)).place
    delete(path, ["d1"])
    message = error(capsys, "--store", path, "--top-k", 3, QUESTION)
    assert "between 1 and the number of documents 2" in message
    status, out, _ = run(capsys, "--store", path, "--json", "--top-k", 2, QUESTION)
    assert status == 0
    assert "Ada Bell" not in {d["title"] for d in json.loads(out)["documents"]}


def test_hybrid_search_reads_the_question(store, capsys, monkeypatch):
    message = error(capsys, "--store", store, "--hybrid", QUESTION)
    assert "index" in message and "--words" in message
    index_words(Store.open(store))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    status, out, err = run(
        capsys, "--store", store, "--search", "exact", "--hybrid", "--json", "-"
    )
    assert status == 0, err
    assert len(json.loads(out)["documents"]) == 2


def asked(capsys, *arguments):
    """The documents that a question is answered from, whose fields are as stored."""
    status, out, err = run(capsys, *arguments, "--json", QUESTION)
    assert status == 0, err
    (line,) = out.splitlines()
    return {d["title"]: d["metadata"] for d in json.loads(line)["documents"]}


@pytest.mark.parametrize("search", ["exact", "scann"])
def test_only_documents_that_meet_a_condition_are_read(model, tmp_path, capsys, search):
    path = make_store(model, tmp_path / "store", model=str(model)).place
    if search == "scann":
        build_index(Store.open(path))
    given = ("--store", path, "--search", search, "--top-k")
    later = {"Edo Falk": {"year": 2019, "team": "legal"}}
    last = {"": {"year": 2020, "team": "legal"}}
    everything = {"Ada Bell": {}, **later, **last}
    for condition, expected in {
        "true": everything,
        "year >= 2019 and team = 'legal'": {**later, **last},
        "year < 2020": later,
        "year is null": {"Ada Bell": {}},
        "title = 'Ada Bell' or year = 2020": {"Ada Bell": {}, **last},
    }.items():
        found = asked(capsys, *given, len(expected), "--where", condition)
        assert found == expected
    status, out, _ = run(
        capsys, *given, 2, "--where", "year > 2018", "--no-stream", QUESTION
    )
    assert status == 0 and out.startswith("2 documents in ")
    message = error(capsys, *given, 3, "--where", "year > 2018", QUESTION)
    assert "between 1 and the number of documents 2" in message


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("nonsense =", "where 'nonsense ='"),
        ("yeer > 3", "the fields are id, title, text, source, team, year"),
        ("year", "where 'year'"),
        ("year > 'soon'", "where \"year > 'soon'\""),
        ("", "where ''"),
        ("year > 3000", "no document"),
    ],
)
def test_conditions_that_make_no_sense_are_one_line(store, capsys, condition, message):
    said = error(capsys, "--store", store, "--where", condition, QUESTION)
    assert message in said


def test_an_earlier_version_answers_as_it_did(model, tmp_path, capsys):
    path = make_store(model, tmp_path / "store", model=str(model)).place
    before = Store.open(path).version
    delete(path, ["d1"])
    given = ("--store", path, "--top-k")
    assert "Ada Bell" not in asked(capsys, *given, 2)
    assert "Ada Bell" in asked(capsys, *given, 3, "--at", before)
    newest = Store.open(path).version
    assert "Ada Bell" not in asked(capsys, *given, 2, "--at", newest)
    where = ("--at", before, "--where", "year is null")
    assert asked(capsys, *given, 1, *where) == {"Ada Bell": {}}
    message = error(capsys, *given, 2, "--at", 99, QUESTION)
    assert f"has no version 99; there are {before}, {newest}" in message
    with pytest.raises(SystemExit):
        run(capsys, *given, 2, "--at=-1", QUESTION)
    assert "'-1' is not a number above 0" in capsys.readouterr().err
    compact(path)
    message = error(capsys, *given, 2, "--at", before, QUESTION)
    assert f"has no version {before}; there are " in message


def test_bad_input(model, store, tmp_path, capsys):
    message = error(capsys, "--store", store, "--documents", "a.txt", QUESTION)
    assert "leave --documents out" in message
    message = error(capsys, "--store", tmp_path, QUESTION)
    assert "no store" in message and "clara_jax.compress" in message
    message = error(capsys, "--store", store, "--search", "scann", QUESTION)
    assert "index" in message
    message = error(capsys, QUESTION)
    assert "no --model given" in message
    for more in (("--hybrid",), ("--where", "true"), ("--at", 1)):
        message = error(capsys, "--model", model, *more, QUESTION)
        assert "give one" in message


def test_another_model_is_refused_and_both_are_named(model, store, tmp_path, capsys):
    other = make_store(model, tmp_path / "other", fingerprint="0badc0de")
    message = error(capsys, "--store", other.place, "--model", model, QUESTION)
    mine = Store.open(store).fingerprint
    assert "0badc0de" in message and mine in message


def test_explain_does_not_swallow_the_question(store, capsys):
    status, out, err = run(capsys, "--store", store, "--explain", QUESTION)
    assert status == 0, err
    assert out.count("0.") >= 10 and f"question: {QUESTION}" in out
