import json

import pytest
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
    assert _run(capsys, *arguments)[0] == 0
    assert (tmp_path / "predictions.jsonl").read_bytes() == written


def test_bad_input_is_one_line(model, data, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"docs": ["x"], "data_type": "text"}')
    given = ("--model", model, "--out", tmp_path / "out")
    for arguments, message in (
        ((*given, "--data", data, "--top-k", 3), "top_k 3 is above the number"),
        ((*given, "--data", data, "--baselines", "dpr"), "baseline 'dpr' is unknown"),
        ((*given, "--data", tmp_path / "none.jsonl"), "none.jsonl"),
        ((*given, "--data", tmp_path / "text.jsonl"), "holds no questions"),
        ((*given, "--data", data, "--limit", -1), "--limit must not be negative"),
    ):
        status, _, err = _run(capsys, *arguments)
        last = err.strip().splitlines()[-1]
        assert status == 1 and last.startswith("error: ") and message in last
