"""The command as a user runs it: answers, JSON, standard input, one-line errors."""

import io
import json

import pytest
from toy_folder import DOCUMENTS, QUESTION, write_toy

from clara_jax.answer.__main__ import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_toy(tmp_path_factory.mktemp("answer") / "run")
    lines = [json.dumps(document) for document in DOCUMENTS]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    path = tmp_path_factory.mktemp("answer") / "run"
    return write_toy(path, roles=("compressor", "generator"))


def run(capsys, *arguments):
    status = main([str(a) for a in (*arguments, "--max-new-tokens", 3)])
    return status, *capsys.readouterr()


def error(capsys, *arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_prints_answer_documents_and_times(model, capsys):
    status, out, err = run(capsys, "--model", model, QUESTION)
    assert status == 0, err
    assert f"question: {QUESTION}" in out
    assert "compressed 3 documents in" in out
    assert "  2. " in out and "  3. " not in out
    for part in ("reason", "select", "prefill", "decode"):
        assert f"{part} " in out


def test_answers_over_a_quantized_backbone(model, capsys):
    status, out, err = run(capsys, "--model", model, "--quantize", "nf4", QUESTION)
    assert status == 0, err
    assert f"question: {QUESTION}" in out
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "--model", model, "--quantize", "int4", QUESTION)
    message = capsys.readouterr().err
    assert "invalid choice: 'int4' (choose from" in message and "nf4" in message


def test_json_of_several_questions(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Where did Edo Falk study\n\n"))
    status, out, _ = run(
        capsys, "--model", model, "--json", "--top-k", 3, QUESTION, "-"
    )
    assert status == 0
    first, second = map(json.loads, out.splitlines())
    assert (first["question"], second["question"]) == (
        QUESTION,
        "Where did Edo Falk study",
    )
    scores = [document["score"] for document in first["documents"]]
    assert scores == sorted(scores, reverse=True)
    assert {d["title"] for d in first["documents"]} == {"Ada Bell", "Edo Falk", ""}
    assert set(first["seconds"]) == {
        "compress",
        "reason",
        "select",
        "prefill",
        "decode",
    }


def test_a_bad_line_of_standard_input_does_not_end_the_others(
    model, capsys, monkeypatch
):
    lines = ["born " * 20, "caf\udce9", QUESTION]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    status, out, err = run(capsys, "--model", model, "--json", "-")
    assert status == 1
    assert json.loads(out)["question"] == QUESTION
    first, second = err.splitlines()
    assert first.startswith("error: standard input, line 1: the question has")
    assert second.startswith("error: standard input, line 2: the question is no Unic")


def test_unknown_words_are_told(model, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("quantum cheese")
    file = ("--documents", tmp_path / "a.txt")
    status, _, err = run(capsys, "--model", model, *file, "--top-k", 1, "Where zyx")
    assert status == 0
    assert "note: 1 of 1 documents hold words that the model's tokenizer" in err
    assert "note: the question holds words that" in err


def test_text_files_and_no_reasoner(unfinished, tmp_path, capsys):
    files = []
    for i in range(2):
        files += ["--documents", tmp_path / f"{i}.txt"]
        files[-1].write_text(DOCUMENTS[i]["text"] + " and much more" * 5)
    status, out, err = run(capsys, "--model", unfinished, *files, QUESTION)
    assert status == 0, err
    assert "note: 2 of 2 documents are longer" in err
    assert "no reasoner; all documents are read" in err
    assert "1. 0.txt" in out and "2. 1.txt" in out


def test_a_missing_reasoner_names_its_stage(unfinished, model, capsys):
    documents = model / "documents.jsonl"
    message = error(capsys, "--model", unfinished, "--documents", documents, QUESTION)
    assert "stage end_to_end" in message and "--top-k 3" in message


def test_bad_input(model, unfinished, tmp_path, capsys):
    def documents(name, text):
        (tmp_path / name).write_text(text)
        return ("--model", model, "--documents", tmp_path / name, QUESTION)

    model_only = ("--model", model)
    assert "question is empty" in error(capsys, *model_only, "  ")
    assert "no question" in error(capsys, *model_only)
    assert "no documents" in error(capsys, "--model", unfinished, QUESTION)
    assert "limit 8" in error(capsys, *model_only, "born " * 20)
    assert "no Unicode" in error(capsys, *model_only, "caf\udce9")
    assert "seed must be" in error(capsys, *model_only, "--seed", 2**70, QUESTION)
    assert "half of a surrogate" in error(
        capsys, *documents("half.jsonl", '{"text": "a \\ud800"}')
    )
    assert "top_k 4" in error(capsys, *model_only, "--top-k", 4, QUESTION)
    assert "top_k 0" in error(capsys, *model_only, "--top-k", 0, QUESTION)
    assert "top_p" in error(capsys, *model_only, "--top-p", 0, QUESTION)
    assert "a.txt" in error(capsys, *documents("a.txt", " \n "))
    assert "b.jsonl:2" in error(capsys, *documents("b.jsonl", '{"text":"a"}\n{"text'))
    assert "c.jsonl:1" in error(capsys, *documents("c.jsonl", '{"text": "  "}'))
    assert "has no 'text'" in error(capsys, *documents("d.jsonl", '{"label": "a"}'))
    assert "e.jsonl" in error(capsys, *documents("e.jsonl", ""))
    absent = ("--documents", tmp_path / "no.jsonl", QUESTION)
    assert "no.jsonl" in error(capsys, *model_only, *absent)


def test_a_base_model_is_refused(tmp_path, model, capsys):
    base = write_toy(tmp_path / "base", base=True)
    documents = model / "documents.jsonl"
    message = error(capsys, "--model", base, "--documents", documents, QUESTION)
    assert "base model without CLaRa adapters" in message


def test_questions_from_files(model, tmp_path, capsys):
    (tmp_path / "q.txt").write_text(f"{QUESTION}\n\n  \nWhere did Edo Falk study\n")
    rows = [{"question": QUESTION}, {"question": "born " * 20}, QUESTION]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = ("--model", model, "--json", "--questions")
    status, out, _ = run(capsys, *lines, tmp_path / "q.txt")
    assert status == 0 and len(out.splitlines()) == 2
    status, out, err = run(capsys, *lines, tmp_path / "q.jsonl")
    assert status == 1 and len(out.splitlines()) == 2
    assert "q.jsonl:2: the question has 20 tokens" in err
    (tmp_path / "bad.jsonl").write_text('{"q": 1}')
    assert "bad.jsonl:1: has no 'question'" in error(
        capsys, *lines, tmp_path / "bad.jsonl"
    )
    (tmp_path / "empty.txt").write_text(" \n")
    assert "holds no questions" in error(capsys, *lines, tmp_path / "empty.txt")


def test_streamed_and_explained(model, capsys):
    _, plain, _ = run(capsys, "--model", model, QUESTION)
    status, out, _ = run(capsys, "--model", model, "--stream", "--explain", 3, QUESTION)
    answer = plain.split("answer:")[1].splitlines()[0].strip()
    assert status == 0 and f"\n{answer}\n" in out
    assert "what the reasoner's vectors are near to:\n  1. " in out
    _, out, _ = run(capsys, "--model", model, "--stream", "--json", QUESTION)
    seconds = json.loads(out.splitlines()[-1])["seconds"]
    assert seconds["prefill"] > 0 and seconds["decode"] > 0
    _, out, _ = run(capsys, "--model", model, "--json", "--explain", 2, QUESTION)
    slots = json.loads(out)["reasoner"]
    assert [len(slot) for slot in slots] == [2, 2]
    assert all(0 <= share <= 1 for slot in slots for _, share in slot)


def test_long_documents_come_in_pieces(model, unfinished, tmp_path, capsys):
    path = tmp_path / "long.md"
    path.write_text("Ada Bell was born in Corin . " * 30)
    asked = ("--documents", path, QUESTION)
    status, out, err = run(capsys, "--model", model, *asked)
    assert status == 0 and "note: long documents were cut" in err
    assert "long.md (part " in out
    _, out, err = run(capsys, "--model", model, "--whole", "--top-k", 1, *asked)
    assert "1 of 1 documents are longer" in err and "1. " in out
    message = error(capsys, "--model", unfinished, "--explain", "5", *asked)
    assert "no reasoner to look at" in message
