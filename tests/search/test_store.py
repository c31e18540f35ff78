import builtins
import io
import json
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toy_store import (
    SHARD,
    make_toy,
    toy_pieces,
    toy_settings,
    toy_vectors,
    write_store,
)

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Store, delete
from clara_jax.search.codecs import center_of, decode, encode, read_center
from clara_jax.search.manifest import digest_of

ODD_TEXTS = [
    "line\u2028separator\u2029and\x85next\x1cline\r\nend",
    "\ufeffmark first",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧 \u0000 nul",
    "e\u0301 and é are two texts",
    "",
    " \n\t ",
    "العربية עברית 中文",
    "\U0010ffff" * 3,
]


@pytest.mark.parametrize("dtype", CODECS)
def test_vectors_come_back_in_any_order(tmp_path, dtype):
    vectors = toy_vectors(10)
    store = write_store(
        tmp_path / "s", toy_settings(dtype), vectors, toy_pieces(10), SHARD
    )
    assert (store.rows, len(store), store.dtype) == (10, 10, dtype)
    assert (store.num_memory, store.width) == vectors.shape[1:]
    center = read_center(center_of(vectors, dtype), vectors.shape[1:])
    codes = encode(vectors, dtype, center)
    expected = decode(*codes, dtype, store.width, center=center)
    for rows in ([9, 0, 4, 4, 3], range(10), [], np.array([8, 2], np.int32)):
        found = store.vectors(rows)
        np.testing.assert_array_equal(found, expected[np.asarray(rows, int)])
        norms = np.linalg.norm(found, axis=(1, 2))
        np.testing.assert_allclose(store.norms(rows), norms, rtol=1e-6)


def test_no_row_of_that_number(tmp_path):
    store = make_toy(tmp_path / "s")
    for read in (store.vectors, store.norms, store.pieces):
        for row in (-1, 7):
            with pytest.raises(ClaraError, match=f"s: has no row {row}; it holds 7"):
                read([0, row])


def test_pieces_of_any_text(tmp_path):
    pieces = [
        Document(
            text, f"id {text}", text[:5], f"{text}.txt", i, 2**40 + i, i + 1, 9, {}
        )
        for i, text in enumerate(ODD_TEXTS)
    ]
    metadata = {"a": [1, None, {"b": ODD_TEXTS[0]}], "\u2028": True, "x": 0.1}
    pieces.append(Document("with metadata", metadata=metadata))
    vectors = toy_vectors(len(pieces))
    store = write_store(tmp_path / "s", toy_settings(), vectors, pieces, 4)
    assert store.pieces(range(len(pieces))) == pieces
    assert store.pieces([5, 5, 0]) == [pieces[5], pieces[5], pieces[0]]
    assert store.find(ODD_TEXTS).tolist() == list(range(len(ODD_TEXTS)))
    assert store.rows_of(pieces[2].id).tolist() == [2]


def test_text_that_is_none(tmp_path):
    pieces = [Document("fine"), Document("half \ud800", source="bad.jsonl:7")]
    with pytest.raises(ClaraError, match="bad.jsonl:7: holds half of a surrogate"):
        write_store(tmp_path / "s", toy_settings(), toy_vectors(2), pieces)


def test_metadata_that_are_no_json(tmp_path):
    piece = Document("text", source="bad.jsonl:7", metadata={"a": {1, 2}})
    with pytest.raises(ClaraError, match="bad.jsonl:7: its metadata are not JSON"):
        write_store(tmp_path / "s", toy_settings(), toy_vectors(1), [piece])


def test_find(tmp_path):
    texts = ["a", "b", "a", "c", "", "b", "d"]
    pieces = [Document(text, f"id{i}") for i, text in enumerate(texts)]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(7), pieces, SHARD)
    assert store.find(["b", "x", "a", "b", "", "A"]).tolist() == [1, -1, 0, 1, 4, -1]
    assert store.find([]).shape == (0,)
    delete(store.path, ["id0", "id1", "id3"])
    later = Store.open(store.path)
    assert later.find(["a", "b", "c", "d"]).tolist() == [2, 5, -1, 6]
    # The store that was opened before has not changed.
    assert store.find(["a", "b", "c", "d"]).tolist() == [0, 1, 3, 6]


def test_hashes_that_agree_are_not_texts_that_agree(tmp_path, monkeypatch):
    def few(texts):
        return np.array([len(text) for text in texts], np.uint64)

    monkeypatch.setattr("clara_jax.search.store.text_hashes", few)
    texts = ["aa", "bb", "cc", "aa", "d"]
    pieces = [Document(text, f"i{i}") for i, text in enumerate(texts)]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(5), pieces, 2)
    assert store.find(["cc", "aa", "ee", "bb", "d", "e"]).tolist() == [
        2,
        0,
        -1,
        1,
        4,
        -1,
    ]
    assert store.rows_of("i3").tolist() == [3]
    assert store.rows_of("i9").tolist() == []
    assert store.find(["i0", "j0"], "id").tolist() == [0, -1]


def test_rows_of_a_document(tmp_path):
    names = ["x", "x", "y", "x", "", ""]
    pieces = [
        Document(f"t{i}", name, part=i + 1, parts=9) for i, name in enumerate(names)
    ]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(6), pieces, 2)
    assert store.rows_of("x").tolist() == [0, 1, 3]
    delete(store.path, ["y"])
    store = Store.open(store.path)
    assert store.rows_of("y").tolist() == []
    assert store.find(["x", "y", "z"], "id").tolist() == [0, -1, -1]


def test_empty_stores_and_shards(tmp_path):
    empty = write_store(tmp_path / "e", toy_settings("int4"), toy_vectors(0), [])
    assert (empty.rows, len(empty)) == (0, 0)
    assert empty.vectors([]).shape == (0, 2, 6)
    assert empty.find(["a"]).tolist() == [-1]
    assert Store.open(empty.path).live.shape == (0,)


def test_threads_read_together(tmp_path, monkeypatch):
    """With fewer files held open than the store has, so that they take turns."""
    monkeypatch.setattr("clara_jax.search.store.OPEN_FILES", 4)
    store = make_toy(tmp_path / "s", 40, "int8")
    expected = store.vectors(range(40))
    texts = [piece.text for piece in store.pieces(range(40))]

    def read(seed):
        rows = np.random.default_rng(seed).permutation(40)
        np.testing.assert_array_equal(store.vectors(rows), expected[rows])
        assert [p.text for p in store.pieces(rows)] == [texts[row] for row in rows]
        assert (store.find([texts[row] for row in rows]) == rows).all()
        return len(rows)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(24))) == [40] * 24


def test_fingerprint(tmp_path):
    path = make_toy(tmp_path / "s", fingerprint="abc1").path
    assert Store.open(path, "abc1").fingerprint == "abc1"
    with pytest.raises(
        ClaraError, match="another model.*abc1.*that of.*def2.*../model"
    ):
        Store.open(path, "def2")


def test_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ClaraError, match="holds no store.json.*clara_jax.compress"):
            Store.open(path)
    assert list(tmp_path.iterdir()) == []


def test_unfinished(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ClaraError, match="is not finished; go on with the same"):
        Store.open(tmp_path)


def test_another_format(tmp_path):
    path = make_toy(tmp_path / "s").path / "store.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    values["format"] = 2
    path.write_text(json.dumps({**values, "checksum": digest_of(values)}))
    with pytest.raises(ClaraError, match="store.json: is of format 2.*reads format 1"):
        Store.open(path.parent)


def test_manifest_damaged(tmp_path):
    path = make_toy(tmp_path / "s").path / "store.json"
    whole = path.read_text()
    path.write_text(whole.replace('"width": 6', '"width": 7'))
    with pytest.raises(ClaraError, match="store.json: is damaged .its checksum"):
        Store.open(path.parent)
    path.write_text(whole[:100])
    with pytest.raises(ClaraError, match="store.json: is not JSON"):
        Store.open(path.parent)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_every_file_must_have_its_size(tmp_path, dtype):
    store = make_toy(tmp_path / "s", dtype=dtype)
    delete(store.path, ["d2"])
    files = [p for p in store.path.rglob("*") if p.is_file() and p.name != "store.json"]
    assert len(files) == 3 * (6 if dtype == "bfloat16" else 7) + 1
    for file in files:
        data = file.read_bytes()
        for wrong, said in (
            (data[:-1], "is truncated .*--check"),
            (b"", "is truncated"),
            (data + b"0", "has grown"),
            (None, "is missing"),
        ):
            file.unlink() if wrong is None else file.write_bytes(wrong)
            with pytest.raises(ClaraError, match=f"{file.name}: {said}") as caught:
                Store.open(store.path)
            assert str(file.parent) in str(caught.value)
        file.write_bytes(data)
    assert len(Store.open(store.path)) == 6


def test_a_file_that_goes_away_later(tmp_path):
    store = make_toy(tmp_path / "s")
    for name in ("vectors.npy", "pieces.arrow"):
        (store.path / "shards" / "000001-000001" / name).unlink()
    assert store.vectors([0]).shape == (1, 2, 6)
    with pytest.raises(
        ClaraError, match="vectors.npy: cannot be read; if the store was"
    ):
        store.vectors([3])
    with pytest.raises(ClaraError, match="pieces.arrow: cannot be read"):
        store.pieces([3])


def test_deleted_rows_are_checked_when_read(tmp_path):
    store = make_toy(tmp_path / "s")
    delete(store.path, ["d2"])
    file = store.path / "deleted-000002.npy"
    data = bytearray(file.read_bytes())
    data[-8] ^= 1
    file.write_bytes(data)
    store = Store.open(store.path)
    assert len(store) == 6
    with pytest.raises(ClaraError, match="deleted-000002.npy: is damaged"):
        _ = store.deleted


class Opened:
    """Notes which files are opened for reading."""

    def __init__(self, monkeypatch):
        self.names = []
        opener = io.open

        def noting(file, *arguments, **options):
            self.names.append(str(file).rpartition("/")[2])
            return opener(file, *arguments, **options)

        monkeypatch.setattr(io, "open", noting)
        monkeypatch.setattr(builtins, "open", noting)


def test_opening_reads_the_manifest_alone(tmp_path, monkeypatch):
    path = make_toy(tmp_path / "s", 30).path
    opened = Opened(monkeypatch)
    store = Store.open(path)
    assert (len(store), store.generation, store.epoch) == (30, 1, 0)
    assert opened.names == ["store.json"]
    # A row costs the files of its shard that are asked for, once.
    store.vectors([7])
    store.norms([6])
    names = list(opened.names)
    assert list(dict.fromkeys(names)) == ["store.json", "vectors.npy", "norms.npy"]
    store.vectors([7])
    assert opened.names == names


@pytest.mark.slow
def test_a_million_rows(tmp_path, monkeypatch):
    rows, shard = 1_000_000, 4096
    numbers = np.arange(rows, dtype=np.float32)
    vectors = np.stack([np.cos(numbers * (i + 1)) for i in range(8)], -1)[:, None]
    pieces = [Document(f"text {i}", f"d{i}", stop=9) for i in range(rows)]
    settings = toy_settings("int8", width=8, memory=type(toy_settings().memory)(16, 16))
    path = tmp_path / "s"
    write_store(path, settings, vectors.astype(np.float32), pieces, shard)
    del pieces

    opened = Opened(monkeypatch)
    tracemalloc.start()
    store = Store.open(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.names == ["store.json"]
    assert len(store.manifest.shards) == -(-rows // shard)
    # What is kept and what is needed meanwhile belong to the shards, not to the rows.
    assert kept < 4_000 * len(store.manifest.shards)
    assert most < 20_000 * len(store.manifest.shards)

    # What the first call of all imports and compiles is not the rows'.
    toy = make_toy(tmp_path / "toy", 3)
    toy.vectors([0])
    toy.pieces([0])
    some = [999_999, 0, 123_456]
    tracemalloc.start()
    found = store.vectors(some)
    pieces = store.pieces(some)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000
    np.testing.assert_allclose(found, vectors[some], atol=0.005)
    assert [piece.id for piece in pieces] == [f"d{i}" for i in some]
    assert store.find(["text 77777", "text"]).tolist() == [77777, -1]
    assert store.rows_of("d500000").tolist() == [500_000]
    assert sys.getsizeof(store.live) < rows + 200
