import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clara_jax.data.sources import JsonFile
from clara_jax.errors import ClaraError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n  \n{"a": "é"}\r\n{"a": 3}')
    file = JsonFile(path)
    assert len(file) == 3
    assert [file[i] for i in range(3)] == [
        ({"a": 1}, f"{path}:1"),
        ({"a": "é"}, f"{path}:4"),
        ({"a": 3}, f"{path}:5"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_array(tmp_path, indent):
    values = [
        {"a": ['[{"', "\\", '\\"}']},
        {"b": [[1, [2]], {}]},
        {"c": 'tail \\" ] }'},
    ]
    path = write(tmp_path / "a.json", "  \n" + json.dumps(values, indent=indent) + "\n")
    file = JsonFile(path)
    assert [file[i][0] for i in range(len(file))] == values
    assert file[1][1] == f"{path}: record 2"


def test_texts_are_items_too(tmp_path):
    path = write(tmp_path / "a.json", ' ["one", {"a": ["x"]},"]"] ')
    file = JsonFile(path)
    assert [file[i][0] for i in range(len(file))] == ["one", {"a": ["x"]}, "]"]


def test_threads_read_alike(tmp_path):
    values = [{"n": i, "text": "x" * i} for i in range(200)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, values)))
    file = JsonFile(path)
    with ThreadPoolExecutor(8) as pool:
        assert [pair[0] for pair in pool.map(file.__getitem__, range(200))] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no records"),
        (" \n\n", "holds no records"),
        ("[]", "holds no records"),
        ('[{"a": 1}, {"a": 2}', "ends in the middle, after record 2"),
        ('[{"a": 1}, {"a": ["x', "ends in the middle, after record 1"),
        ('[{"a": 1} {"a": 2}]', "after record 1 stands something"),
        ('[{"a": 1}, 3, {"a": 2}]', "after record 1 stands something"),
        ('[{"a": 1},, {"a": 2}]', "after record 1 stands something"),
        ('[{"a": 1},]', "after record 1 stands something"),
        ('[{"a": 1}] [{"a": 2}]', "something follows the end of its JSON array"),
    ],
)
def test_broken_files(tmp_path, text, message):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ClaraError, match=message):
        JsonFile(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', r"a.json:2: is not JSON: Expecting value \(column"),
        ('{"a": 1}\nhello\n', "a.json:2: is not JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"a.json:2: is not UTF-8 \(byte 7\)"),
        ("{}\n" + "[" * 100_000 + "\n", "a.json:2: "),
        ('[{"a": 1}, {"a" 2}]', "a.json: record 2: is not JSON"),
    ],
)
def test_broken_objects_are_named(tmp_path, text, message):
    file = JsonFile(write(tmp_path / "a.json", text))
    assert file[0][0] is not None
    with pytest.raises(ClaraError, match=message):
        file[1]


def test_missing_file(tmp_path):
    with pytest.raises(ClaraError, match="No such file"):
        JsonFile(tmp_path / "none")
