"""Columns of Lance's files as arrays, and what is wrong with files."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from clara_jax.lance_files import map_columns, to_numpy, typed, wrong_files

FLAT = {
    "lance-encoding:compression": "none",
    "lance-encoding:structural-encoding": "fullzip",
}


@pytest.fixture
def dataset(tmp_path):
    columns = {
        "bits": pa.array([bytes([i, i + 1]) for i in range(5)], pa.binary(2)),
        "list": pa.array([[i, i / 2] for i in range(5)], pa.list_(pa.float32(), 2)),
        "same": pa.array([7] * 5, pa.uint64()),
        "text": pa.array(list("abcde")),
    }
    fields = [pa.field(n, c.type, False, FLAT) for n, c in columns.items()]
    table = pa.table(list(columns.values()), pa.schema(fields))
    place = str(tmp_path / "d")
    return lance.write_dataset(table, place, data_storage_version="2.2")


def files(dataset):
    (fragment,) = dataset.get_fragments()
    (file,) = fragment.data_files()
    return fragment, Path(dataset.uri, "data", file.path)


def test_columns_are_mapped(dataset):
    kinds = {
        "bits": np.dtype((np.uint8, (2,))),
        "list": np.dtype((np.float32, (2,))),
        "same": np.dtype(np.uint64),  # which Lance keeps once
    }
    found = map_columns(files(dataset)[1], 5, kinds)
    assert found["bits"].tolist() == [[i, i + 1] for i in range(5)]
    assert found["list"].tolist() == [[i, i / 2] for i in range(5)]
    assert found["same"].tolist() == [7] * 5
    table = dataset.to_table()
    for name, kind in kinds.items():
        np.testing.assert_array_equal(typed(table[name], kind), found[name])


def test_parts_of_columns():
    column = pa.chunked_array([[1, 2], [3]], pa.int64())
    assert to_numpy(column).tolist() == [1, 2, 3]
    assert to_numpy(column.slice(0, 0)).shape == (0,)
    bits = pa.array([b"ab", b"cd", b"ef"], pa.binary(2))
    assert to_numpy(bits.slice(1, 2)).tolist() == [[99, 100], [101, 102]]
    assert to_numpy(pa.chunked_array([], pa.binary(2))).shape == (0, 2)


def test_what_is_wrong_with_a_file(dataset):
    fragment, path = files(dataset)
    whole = path.read_bytes()
    for data, says in (
        (whole, None),
        (whole[:-1], "is truncated"),
        (whole + b"x", "has grown"),
        (whole[:9], "is truncated"),
        (whole[:-1] + b"X", "is damaged at its end"),
        (whole[:-40] + b"\xff" * 8 + whole[-32:], "is damaged at its end"),
    ):
        path.write_bytes(data)
        found = list(wrong_files(dataset.uri, fragment))
        assert [(path, what.partition(" (")[0]) for path, what in found] == (
            [(path, says)] if says else []
        )
    path.unlink()
    assert list(wrong_files(dataset.uri, fragment)) == [(path, "is missing")]
    assert list(wrong_files("s3://bucket/d", fragment)) == []
