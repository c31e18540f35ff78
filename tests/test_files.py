import errno
import json
from pathlib import Path

import pytest

from clara_jax import files
from clara_jax.errors import ClaraError
from clara_jax.files import (
    first_line,
    json_line,
    read_ahead,
    read_json,
    told,
    write_error,
    write_json,
)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"café": [1, None]})
    assert read_json(path) == {"café": [1, None]}
    assert (
        path.read_text(encoding="utf-8") == '{\n  "café": [\n    1,\n    null\n  ]\n}\n'
    )
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b'{"a": ', "is not JSON ("),
        (b"\xff\xfe", "is not JSON ("),
        (b"[1]", "must hold a JSON object"),
    ],
)
def test_damage_is_one_line(tmp_path, content, expected):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClaraError) as raised:
        read_json(path)
    assert str(raised.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(raised.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(ClaraError, match="the disk is full"):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_errors_are_told_in_one_line():
    assert first_line(KeyError("no such field\nmore")) == "no such field"
    assert first_line(ValueError("  first  \nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"
    assert told(ClaraError("x: y")) == "error: x: y"
    full = OSError(errno.ENOSPC, "No space left on device", "a/b")
    assert told(full) == "error: a/b: the disk is full; free space and try again"
    assert told(OSError(errno.EACCES, "Permission denied", "a")).endswith(
        "a: Permission denied"
    )
    denied = PermissionError(errno.EACCES, "Permission denied")
    message = str(write_error(Path("x"), denied))
    assert message.startswith("x: cannot be written (") and "Permission" in message
    full = ValueError("RESOURCE_EXHAUSTED: write: No space left on device [x='y']")
    assert str(write_error(Path("x"), full)).startswith("x: the disk is full;")


def test_a_file_is_locked_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    held = files.lock_file(path, "busy")
    with pytest.raises(ClaraError, match="^busy$"):
        files.lock_file(path, "busy")
    held.close()
    files.lock_file(path, "busy").close()


def test_where_nothing_can_be_locked_nobody_is_kept_out(tmp_path, monkeypatch):
    def unable(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unable)
    assert files.lock_file(tmp_path / "lock", "busy") is None
    monkeypatch.setattr(files, "fcntl", None)
    assert files.lock_file(tmp_path / "lock", "busy") is None


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ClaraError, match=r"none/lock: cannot be written"):
        files.lock_file(tmp_path / "none" / "lock", "busy")


def test_what_is_read_ahead_comes_in_order_and_errors_in_their_place():
    def read(number):
        if number == 3:
            raise ValueError("three")
        return number

    assert list(read_ahead(read, [])) == []
    assert list(read_ahead(read, [2, 1, 5])) == [2, 1, 5]
    found = []
    with pytest.raises(ValueError, match="three"):
        for number in read_ahead(read, range(9)):
            found.append(number)
    assert found == [0, 1, 2]


def test_json_lines_are_lines_for_every_reader():
    value = {"text": "a\x85b\u2028c\u2029d\ne\x0cf\x1cgé", "\u2028": [1]}
    line = json_line(value)
    assert line.splitlines() == [line] and json.loads(line) == value
    assert "é" in line
