"""Questions out of files."""

import json
import os

import pytest

from clara_jax.data import read_questions
from clara_jax.errors import ClaraError


def test_a_line_is_a_question_whatever_it_holds(tmp_path):
    path = tmp_path / "a.txt"
    lines = "Who\u2028asks?\r\n\r\n  Why\x0b\x85not? \nWhen?"
    path.write_bytes(lines.encode())
    assert read_questions(path) == [
        ("Who\u2028asks?", f"{path}:1"),
        ("Why\x0b\x85not?", f"{path}:3"),
        ("When?", f"{path}:4"),
    ]


def test_rows_of_questions(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"question": "a\u2028b"}, {"_id": 1, "text": "c"}, {"query": "d"}, "e"]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [q for q, _ in read_questions(path)] == ["a\u2028b", "c", "d", "e"]
    table = tmp_path / "b.csv"
    table.write_text("id,question\n1,Who?\n2,1984\n")
    assert read_questions(table) == [("Who?", f"{table}:2"), ("1984", f"{table}:3")]


@pytest.mark.parametrize("row", ['{"question": " "}', '{"answer": "x"}', "[1]", "true"])
def test_rows_without_one_are_refused(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(f'"fine?"\n{row}\n{row}')
    with pytest.raises(ClaraError, match=r"a.jsonl:2: has no 'question'") as caught:
        read_questions(path)
    assert str(caught.value).startswith("2 problems:")


def test_a_pipe_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClaraError, match=r"pipe: is not a plain file; save it to one"):
        read_questions(tmp_path / "pipe")


def test_a_file_without_any(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n")
    with pytest.raises(ClaraError, match="holds no questions"):
        read_questions(path)
    with pytest.raises(ClaraError, match=r"b.txt: no such file"):
        read_questions(tmp_path / "b.txt")
