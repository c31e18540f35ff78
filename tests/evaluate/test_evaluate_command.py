import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fast_compiles import FAST_COMPILES
from toy_folder import write_toy

from clara_jax.evaluate.__main__ import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "test.jsonl"
    docs = ["Ada Bell was born in Corin", "Edo Falk studied in Gemma"]
    rows = [
        {"docs": docs, "question": "Where was Ada Bell born", "answer": "Corin"},
        {"docs": docs, "question": "Where did Edo Falk study", "answer": "Gemma"},
    ]
    for i, row in enumerate(rows):
        row["pos_index"] = [i]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _run(capsys, *arguments):
    status = main([str(a) for a in (*arguments, "--max-new-tokens", 3)])
    return status, *capsys.readouterr()


def test_a_table_a_file_and_predictions(model, data, tmp_path, capsys):
    arguments = ("--model", model, "--data", data, "--top-k", 1, "--out", tmp_path)
    status, out, _ = _run(capsys, *arguments)
    assert status == 0
    assert "| frozen backbone, closed book |" in out and "| BM25 chooses |" in out
    assert (tmp_path / "scores.md").read_text() in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["questions"] == 2 and scores["retrieval"]["bm25"]["recall@1"] == 1
    written = (tmp_path / "predictions.jsonl").read_bytes()
    for rate in ((), ("--rate", 4)):  # the only one that the model has
        assert _run(capsys, *arguments, *rate)[0] == 0
        assert (tmp_path / "predictions.jsonl").read_bytes() == written
    # A file that does not say the rate, as older ones.
    (tmp_path / "predictions.jsonl").write_bytes(written.replace(b'"rate": 4, ', b""))
    assert _run(capsys, *arguments)[0] == 0
    assert (tmp_path / "predictions.jsonl").read_bytes() == written


def test_bad_input_is_one_line(model, data, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"docs": ["x"], "data_type": "text"}')
    (tmp_path / "alone.jsonl").write_text('{"question": "q?", "answer": "x"}')
    given = ("--model", model, "--out", tmp_path / "out")
    for arguments, message in (
        ((*given, "--data", data, "--top-k", 3), "top_k 3 is above the number"),
        ((*given, "--data", data, "--baselines", "dpr"), "baseline 'dpr' is unknown"),
        ((*given, "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        ((*given, "--data", tmp_path / "text.jsonl"), "holds no questions"),
        ((*given, "--data", tmp_path / "alone.jsonl"), "jsonl:1: has no documents; na"),
        ((*given, "--data", data, "--fields", "id=n"), "no record has the field 'n'"),
        ((*given, "--data", data, "--limit", -1), "--limit must not be negative"),
    ):
        status, _, err = _run(capsys, *arguments)
        last = err.strip().splitlines()[-1]
        assert status == 1 and last.startswith("error: ") and message in last


def test_a_test_set_gets_predictions(model, tmp_path, capsys):
    context = [["Ada", ["Ada Bell was born", "in Corin"]], ["Edo", ["Edo Falk"]]]
    rows = [
        {"_id": f"5a{i}", "question": "Where was Ada Bell born", "context": context}
        for i in range(2)
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    arguments = ("--model", model, "--data", tmp_path / "test.json", "--top-k", 1)
    status, out, err = _run(capsys, *arguments, "--out", tmp_path)
    assert status == 0 and "2 of 2 questions have no known answer" in out
    assert "note: 2 of 2 questions have no known answer" in err
    board = json.loads((tmp_path / "leaderboard.json").read_text())
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()[1:]
    said = {p["id"]: p["answers"]["model"] for p in map(json.loads, lines)}
    assert board == {"answer": said, "sp": {"5a0": [], "5a1": []}}
    assert json.loads((tmp_path / "scores.json").read_text())["retrieval"] == {}


def test_gold_documents_that_are_not_there_are_told(model, tmp_path, capsys):
    context = [["Ada", ["Ada Bell was born in Corin"]], ["Edo", ["Edo Falk"]]]
    row = {"question": "Where was Ada Bell born", "context": context, "answer": "The"}
    facts = [["Ada", 0], ["Corin", 1]]
    rows = [{**row, "supporting_facts": facts}, {**row, "supporting_facts": []}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    given = ("--model", model, "--data", tmp_path / "dev.json", "--top-k", 2)
    given = (*given, "--baselines", "", "--out", tmp_path)
    status, _, err = _run(capsys, *given)
    assert status == 0
    told = [
        "note: 2 gold answers are empty after normalisation ('The')",
        "documents that are not among their question's documents: 1, of 1 of 2 quest",
        "note: for 1 of 2 questions no document is known to hold the answer",
        "note: 2 of 2 questions have no id",
    ]
    assert all(part in err for part in told)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["retrieval"]["model"]["recall@2"] == 0.5
    assert scores["answers"]["model"]["cover_em"]["mean"] == 1.0
    # Other rules need no new predictions.
    before = (tmp_path / "predictions.jsonl").read_bytes()
    assert _run(capsys, *given, "--rules", "squad2", "--unicode")[0] == 0
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["rules"], scores["unicode"]) == ("squad2", True)
    given = (*given[:-1], tmp_path / "oracle", "--setting", "oracle")
    assert _run(capsys, *given)[0] == 0
    scores = json.loads((tmp_path / "oracle" / "scores.json").read_text())
    assert scores["unknown_documents"] == 1
    assert "given all their documents" in (tmp_path / "oracle/scores.md").read_text()


def test_paraphrases_by_the_same_command(model, data, tmp_path, capsys):
    arguments = ("--model", model, "--data", data, "--paraphrase", "--out", tmp_path)
    status, out, _ = _run(capsys, *arguments)
    assert status == 0 and "| paraphrases from | ROUGE-L |" in out
    assert json.loads((tmp_path / "scores.json").read_text())["passages"] == 2
    status, _, err = _run(capsys, *arguments, "--spacy-model", "nowhere")
    assert status == 1 and "error: the spaCy model 'nowhere'" in err


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on(model, tmp_path):
    data = tmp_path / "many.jsonl"
    docs = ["Ada Bell was born in Corin", "Edo Falk studied in Gemma"]
    row = {"docs": docs, "question": "Where was Ada Bell born", "answer": "Corin"}
    rows = [{**row, "question": f"{row['question']} {i}"} for i in range(160)]
    data.write_text("\n".join(json.dumps({**r, "pos_index": [0]}) for r in rows))

    def start(out):
        command = [sys.executable, "-m", "clara_jax.evaluate", "--model", str(model)]
        command += ["--data", str(data), "--top-k", "1", "--max-new-tokens", "2"]
        return subprocess.Popen(
            [*command, "--out", str(out)],
            env={**os.environ, "XLA_FLAGS": " ".join(FAST_COMPILES)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start(tmp_path / "whole")
    assert "| the model |" in whole.communicate()[0]
    out = tmp_path / "killed"
    written = out / "predictions.jsonl"
    process = start(out)
    while process.poll() is None and (
        not written.exists() or written.read_bytes().count(b"\n") < 20
    ):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "scores.json").exists()
    kept = written.read_bytes().count(b"\n") - 1
    assert 0 < kept < len(rows)
    again = start(out)
    errors = again.communicate()[1]
    assert again.returncode == 0, errors
    # The bar begins where the first run was.
    assert f"| {kept}/{len(rows)} [" in errors
    for name in ("predictions.jsonl", "scores.md"):
        assert (out / name).read_bytes().replace(b"/killed", b"/whole") == (
            tmp_path / "whole" / name
        ).read_bytes()


def test_changed_content_is_noticed(model, data, tmp_path, capsys):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(data.read_text())
    arguments = ("--model", model, "--data", copy, "--top-k", 1)
    arguments += ("--baselines", "", "--out", tmp_path / "out")
    assert _run(capsys, *arguments)[0] == 0
    copy.write_text(data.read_text().replace("Gemma", "Jory"))
    status, _, err = _run(capsys, *arguments)
    assert status == 1 and "made otherwise (content changed); give another" in err
    arguments = (*arguments[:2], "--data", data, *arguments[4:])
    status, _, err = _run(capsys, *arguments, "--quantize", "int8")
    assert status == 1 and "quantize changed" in err
    status, _, err = _run(capsys, *arguments, "--dtype", "float16")
    assert status == 1 and "in which a CPU does not compute; take bfloat16" in err
    status, _, err = _run(capsys, *arguments, "--spacy-model", "x")
    assert status == 1 and "add --paraphrase" in err
