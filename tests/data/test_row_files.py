"""Objects of files by number, whatever the form of the file."""

import bz2
import datetime
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from clara_jax.data.row_files import open_rows
from clara_jax.errors import ClaraError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\n\n  \n{"a": "é"}\r\n{"a": 3}')
    file = open_rows(path)
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
    file = open_rows(path)
    assert [file[i][0] for i in range(len(file))] == values
    assert file[1][1] == f"{path}: record 2"


def test_texts_are_items_too(tmp_path):
    path = write(tmp_path / "a.json", ' ["one", {"a": ["x"]},"]"] ')
    file = open_rows(path)
    assert [file[i][0] for i in range(len(file))] == ["one", {"a": ["x"]}, "]"]


def test_threads_read_alike(tmp_path):
    values = [{"n": i, "text": "x" * i} for i in range(200)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, values)))
    file = open_rows(path)
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
        open_rows(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', r"a.json:2: is not JSON: Expecting value \(column"),
        ('{"a": 1}\nhello\n', "a.json:2: is not JSON"),
        (
            b'{"a": 1}\n{"a": "\xc3\xa9\xc3\xa9\xff"}\n',
            r"a.json:2: is not UTF-8 \(byte 11\)",
        ),
        ("{}\n" + "[" * 100_000 + "\n", "a.json:2: "),
        ('[{"a": 1}, {"a" 2}]', "a.json: record 2: is not JSON"),
    ],
)
def test_broken_objects_are_named(tmp_path, text, message):
    file = open_rows(write(tmp_path / "a.json", text))
    assert file[0][0] is not None
    with pytest.raises(ClaraError, match=message):
        file[1]


def test_missing_file(tmp_path):
    with pytest.raises(ClaraError, match="No such file"):
        open_rows(tmp_path / "none")


def rows(path: Path, **given) -> list:
    file = open_rows(path, **given)
    return [file[i][0] for i in range(len(file))]


def test_one_object_over_several_lines(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"a": [1, {"b": 2}]}, indent=2))
    file = open_rows(path)
    assert len(file) == 1
    assert file[0] == ({"a": [1, {"b": 2}]}, f"{path}: record 1")


ROWS = [{"id": "a", "text": "één"}, {"id": "b", "text": "two"}]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl.gz", gzip.compress), ("a.JSON.BZ2", bz2.compress)],
)
def test_compressed(tmp_path, name, pack):
    file = open_rows(write(tmp_path / name, pack(LINES)))
    assert [file[i] for i in (0, 1)] == [
        (ROWS[0], f"{tmp_path / name}:1"),
        (ROWS[1], f"{tmp_path / name}:2"),
    ]


def test_compressed_by_zstd(tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(LINES)
    assert rows(tmp_path / "a.jsonl.zst") == ROWS


def test_parquet(tmp_path):
    """Values that JSON has not are spelled, and columns without a value left out."""
    path = tmp_path / "a.parquet"
    table = [
        {
            "text": "one",
            "none": None,
            "context": {"title": ["A"], "sentences": [["x", "y"], []]},
            "when": datetime.date(2024, 2, 29),
        },
        {"text": "two", "raw": b"x\xff"},
    ]
    parquet.write_table(
        pa.Table.from_pylist(
            table,
            pa.schema(
                [
                    ("text", pa.string()),
                    ("none", pa.string()),
                    ("raw", pa.binary()),
                    ("when", pa.date32()),
                    (
                        "context",
                        pa.struct(
                            {
                                "title": pa.list_(pa.string()),
                                "sentences": pa.list_(pa.list_(pa.string())),
                            }
                        ),
                    ),
                ]
            ),
        ),
        path,
    )
    file = open_rows(path)
    assert [file[i][0] for i in (0, 1)] == [
        {
            "text": "one",
            "context": {"title": ["A"], "sentences": [["x", "y"], []]},
            "when": "2024-02-29",
        },
        {"text": "two", "raw": "x\\xff"},
    ]
    assert file[1][1] == f"{path}: record 2"


def test_tables_of_text(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "id,text,year,share,code\r\n"
        '1,"a, ""b""\nc",2020,0.5,007\r\n\r\n2,d,,1.25,1\r\n',
    )
    file = open_rows(path)
    assert [file[i] for i in range(len(file))] == [
        (
            {"id": 1, "text": 'a, "b"\nc', "year": 2020, "share": 0.5, "code": "007"},
            f"{path}:2",
        ),
        ({"id": 2, "text": "d", "share": 1.25, "code": "1"}, f"{path}:5"),
    ]
    semicolons = "id;text\n1;naïve, isn’t it\n".encode("cp1252")
    assert rows(write(tmp_path / "b.csv", semicolons)) == [
        {"id": 1, "text": "naïve, isn’t it"}
    ]
    # Quotes that quote nothing, and no header.
    tabs = '0\t"Hello, she said\n1\tSo "it" goes"\n'
    assert rows(write(tmp_path / "collection.tsv", tabs)) == [
        {"id": 0, "text": '"Hello, she said'},
        {"id": 1, "text": 'So "it" goes"'},
    ]
    quoted = 'id\ttext\ttitle\n1\t"a ""b"""\tT\n'
    assert rows(write(tmp_path / "psgs.tsv", quoted)) == [
        {"id": 1, "text": 'a "b"', "title": "T"}
    ]


def test_a_row_of_another_length_is_refused_when_it_is_asked_for(tmp_path):
    file = open_rows(write(tmp_path / "a.csv", "a,b\n1,2\n3,4,5\n4,5\n6\n"))
    assert file[2][0] == {"a": 4, "b": 5} and file[3][0] == {"a": 6}
    with pytest.raises(ClaraError, match=r"a.csv:3: has 3 fields, .* names 2 \(a, b\)"):
        file[1]


def test_encodings(tmp_path):
    text = json.dumps({"text": "日本語 – été"}, ensure_ascii=False)
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        assert rows(write(tmp_path / "a.jsonl", text.encode(encoding)))[0] == {
            "text": "日本語 – été"
        }
    path = write(tmp_path / "a.jsonl", text.encode("gb18030"))
    assert rows(path, encoding="gb18030") == [{"text": "日本語 – été"}]
    # What is UTF-8 or marked stays what it is, beside files in a named encoding.
    for own in ("utf-8", "utf-16", "utf-8-sig"):
        file = write(tmp_path / "a.jsonl", text.encode(own))
        assert rows(file, encoding="gb18030") == [{"text": "日本語 – été"}]
    path = write(tmp_path / "a.jsonl", text.encode("gb18030"))
    with pytest.raises(ClaraError, match=r"is not ascii .*--encoding"):
        open_rows(path, encoding="ascii")
    with pytest.raises(ClaraError, match="'nonsense' is unknown; try"):
        open_rows(path, encoding="nonsense")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.parquet", "cannot be read as Parquet"),
        ("a.jsonl.gz", "is not a whole gzip file"),
        ("a.jsonl.zst", "is not a whole zstd file"),
    ],
)
def test_files_that_are_not_what_they_are_called(tmp_path, name, message):
    with pytest.raises(ClaraError, match=f"{name}: {message}"):
        open_rows(write(tmp_path / name, LINES))


@pytest.mark.parametrize(
    "table",
    [
        "id,text\r1,one\r2,two\r",
        "sep=;\r\nid;text\r\n1;one\r\n2;two\r\n",
        '\r\n"id","text"\r\n1,one\r\n2,two',
        "id|text\n1|one\n2|two\n",
        "id,text,\n1,one,\n2,two\n",
    ],
)
def test_tables_as_programs_write_them(tmp_path, table):
    wanted = [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]
    assert rows(write(tmp_path / "a.csv", table)) == wanted


def test_a_header_over_two_lines(tmp_path):
    file = open_rows(write(tmp_path / "a.csv", 'id,"te\nxt"\n1,one\n'))
    assert file[0] == ({"id": 1, "te\nxt": "one"}, f"{tmp_path / 'a.csv'}:3")
    assert file.names == ("id", "te\nxt")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('id,text\n1,a\n2,"b\n3,c\n', "a.csv:3: a quote is opened here"),
        ("text,text\na,b\n", "a.csv: has two columns 'text'; rename one"),
        ("", "a.csv: holds no records"),
        ("id,text\n", "a.csv: holds no records"),
    ],
)
def test_tables_that_are_refused(tmp_path, table, message):
    with pytest.raises(ClaraError, match=message):
        open_rows(write(tmp_path / "a.csv", table))


def test_dates_that_python_does_not_have(tmp_path):
    path = tmp_path / "a.parquet"
    dates = pa.array([2**40], pa.timestamp("s"))
    parquet.write_table(pa.table({"text": ["a"], "date": dates}), path)
    with pytest.raises(ClaraError, match=r"cannot be read as Parquet \(.*range"):
        open_rows(path)
