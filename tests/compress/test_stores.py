"""``index``: built, built anew, measured with questions of its own or given."""

import json
import os
import shutil

import pytest
from toy_folder import QUESTION

from clara_jax.compress.__main__ import main
from clara_jax.loading import find_model, model_place
from clara_jax.search import Store
from clara_jax.search.scann_index import METHODS


def run(capsys, *arguments):
    status = main(["index", *(str(a) for a in arguments)])
    return status, *capsys.readouterr()


def error(capsys, *arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 1
    *_, last = err.splitlines()
    assert last.startswith("error: ")
    return last


def test_built_measured_and_built_anew(copy, model, tmp_path, capsys):
    rows = len(Store.open(copy))
    status, out, _ = run(capsys, "--store", copy)
    assert status == 0
    assert f"ScaNN index of {rows} pieces (method brute_force, " in out
    assert "recall@5 of scann: " in out and "made up: 0.7 of a document" in out
    assert "time per question: exact " in out
    (tmp_path / "new.txt").write_text("Ada Bell")
    added = ("--corpus", tmp_path / "new.txt", "--add", "--store", copy)
    assert main([str(a) for a in ("--model", model, *added)]) == 0
    capsys.readouterr()
    status, out, err = run(capsys, "--store", copy, "--no-report")
    assert status == 0 and f"ScaNN index of {rows + 1} pieces" in out
    assert err == f"ScaNN index of {rows + 1} pieces ...\n" and "recall" not in out
    status, out, _ = run(capsys, "--store", copy, "--no-report", "--dims", 3)
    assert status == 0 and ", dims 3, " in out
    assert main(["--store", str(copy), "--check"]) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_index_of_few_documents(model, tmp_path, capsys, count, method):
    (tmp_path / "few.jsonl").write_text(count * '{"text": "Ada Bell"}\n')
    words = ("--model", model, "--corpus", tmp_path / "few.jsonl")
    assert main([str(w) for w in (*words, "--store", tmp_path / "s")]) == 0
    capsys.readouterr()
    status, out, err = run(capsys, "--store", tmp_path / "s", "--method", method)
    assert status == 0 and f"ScaNN index of {count} pieces (method {method}, " in out
    assert "note: there are too few documents to make questions of" in err


def test_measured_with_questions_that_the_stores_model_reads(copy, tmp_path, capsys):
    (tmp_path / "asked.txt").write_text(f"{QUESTION}\n{'born ' * 30}\n")
    status, out, err = run(
        capsys, "--store", copy, "--questions", tmp_path / "asked.txt", "--top-k", 3
    )
    assert status == 0 and "recall@3 of scann: 1.000" in out
    assert "(2 questions given)" in out and "vectors of 2 questions ..." in err


def test_words_are_indexed_too(copy, capsys):
    status, out, _ = run(capsys, "--store", copy, "--words", "--no-report")
    assert status == 0 and f"full-text index of {len(Store.open(copy))} pieces" in out


def test_bad_input(copy, model, tmp_path, capsys):
    assert "no store" in error(capsys, "--store", tmp_path)
    assert "leave --no-report out" in error(
        capsys, "--store", copy, "--no-report", "--questions", "q.txt"
    )
    assert "--questions FILE" in error(capsys, "--store", copy, "--model", model)
    assert "q.txt" in error(capsys, "--store", copy, "--questions", "q.txt")
    assert "dims 0" in error(capsys, "--store", copy, "--dims", 0)
    other = tmp_path / "model"
    shutil.copytree(model, other)
    settings = json.loads((other / "clara.json").read_text())
    settings["lora"]["alpha"] = 9.0
    (other / "clara.json").write_text(json.dumps(settings))
    (tmp_path / "q.txt").write_text(QUESTION)
    asked = ("--questions", tmp_path / "q.txt", "--model", other)
    assert "another model" in error(capsys, "--store", copy, *asked)


def test_a_store_names_its_model_by_the_way_there_if_that_is_short(tmp_path):
    model, store = tmp_path / "a" / "model", tmp_path / "b" / "store"
    model.mkdir(parents=True)
    assert model_place(model, store) == "../../a/model"
    assert model_place(model, model / "store") == ".."
    far = store / "much" / "deeper"
    assert model_place(model, far) == str(model.resolve())
    assert model_place("someone/model", store) == "someone/model"
    assert model_place("", store) == ""


def test_a_store_finds_its_model_again(whole, model, tmp_path, monkeypatch):
    settings = Store.open(whole).settings
    place, base = find_model(str(whole), settings)
    assert settings.model.startswith("..")
    assert (whole / settings.model).resolve() == model.resolve()
    monkeypatch.chdir(tmp_path)  # wherever one is
    assert os.path.samefile(place, model) and base == ""
