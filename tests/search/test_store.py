import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import lance
import numpy as np
import pyarrow as pa
import pytest
from toy_store import (
    SHARD,
    compact_all,
    contents,
    make_toy,
    toy_pieces,
    toy_settings,
    toy_vectors,
    write_added,
    write_new,
    write_store,
)

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.native import Gone
from clara_jax.search import CODECS, Job, Store, compact, delete, rows
from clara_jax.search.codecs import center_of, decode, encode, read_center

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
    assert (len(store), store.ids.tolist(), store.dtype) == (10, [*range(10)], dtype)
    assert (store.num_memory, store.width) == vectors.shape[1:]
    center = read_center(center_of(vectors, dtype), vectors.shape[1:])
    codes = encode(vectors, dtype, center)
    expected = decode(*codes, dtype, store.width, center=center)
    for ids in ([9, 0, 4, 4, 3], range(10), [], np.array([8, 2], np.int32)):
        order = np.asarray(ids, int)
        found, arrays = store.vectors(ids), store.arrays(ids)
        np.testing.assert_array_equal(found, expected[order])
        np.testing.assert_array_equal(arrays["codes"], codes[0][order])
        if codes[1] is not None:
            scales = arrays["scales"].reshape(codes[1][order].shape)
            np.testing.assert_array_equal(scales, codes[1][order])
        norms = np.linalg.norm(found, axis=(1, 2))
        np.testing.assert_allclose(arrays["norm"], norms, rtol=1e-6)
        assert [p.id for p in store.pieces(ids)] == [f"d{i}" for i in order]
        assert store.strings(ids, "title") == [f"Title {i}" for i in order]
    assert store.row_bytes == codes[0][0].nbytes


def test_no_row_of_that_id(tmp_path):
    store = make_toy(tmp_path / "s")
    assert store.has([0, -1, 7, 6]).tolist() == [True, False, False, True]
    for read in (store.vectors, store.arrays, store.pieces):
        for row in (-1, 7):
            with pytest.raises(Gone, match=f"s: has no row {row}, or has it no longer"):
                read([0, row])


def test_documents_of_any_text(tmp_path):
    pieces = [
        Document(
            text, f"id {text}", text[:5], f"{text}.txt", i, 2**40 + i, i + 1, 9, {}
        )
        for i, text in enumerate(ODD_TEXTS)
    ]
    pieces.append(Document("without anything"))
    vectors = toy_vectors(len(pieces))
    store = write_store(tmp_path / "s", toy_settings(), vectors, pieces, 4)
    assert store.pieces(range(len(pieces))) == pieces
    assert store.pieces([5, 5, 0]) == [pieces[5], pieces[5], pieces[0]]
    assert store.find(ODD_TEXTS).tolist() == list(range(len(ODD_TEXTS)))
    assert store.matching([pieces[2].id]).tolist() == [2]
    assert store.known_ids() == {piece.id for piece in pieces}


def test_what_is_not_text(tmp_path):
    for field in ("text", "id", "title", "source"):
        piece = Document(**{"text": "", "source": "bad.jsonl:7", field: "half \ud800"})
        with pytest.raises(ClaraError, match=": holds half of a surrogate pair"):
            write_store(
                tmp_path / field, toy_settings(), toy_vectors(2), [Document("x"), piece]
            )


def test_find(tmp_path):
    texts = ["a", "b", "a", "c", "", "b", "d"]
    pieces = [Document(text, f"id{i}") for i, text in enumerate(texts)]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(7), pieces, SHARD)
    assert store.find(["b", "x", "a", "b", "", "A"]).tolist() == [1, -1, 0, 1, 4, -1]
    assert store.find([]).shape == (0,)
    delete(store.place, ["id0", "id1", "id3"])
    assert store.newest().find(["a", "b", "c", "d"]).tolist() == [2, 5, -1, 6]
    # The store that was opened before has not changed.
    assert store.find(["a", "b", "c", "d"]).tolist() == [0, 1, 3, 6]


def test_rows_of_a_document(tmp_path):
    names = ["x", "x", "y", "x", "", ""]
    pieces = [
        Document(f"t{i}", name, part=i + 1, parts=9) for i, name in enumerate(names)
    ]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(6), pieces, 4)
    assert store.matching(["x"]).tolist() == [0, 1, 3]
    assert store.matching(["y", "", "z"]).tolist() == [2, 4, 5]
    assert store.matching([]).tolist() == []
    delete(store.place, ["y"])
    assert store.newest().matching(["y"]).tolist() == []


def test_empty_store(tmp_path):
    empty = write_store(tmp_path / "e", toy_settings("int4"), toy_vectors(0), [])
    assert (len(empty), empty.ids.tolist(), empty.fields[:2]) == (
        0,
        [],
        ["id", "title"],
    )
    assert empty.vectors([]).shape == (0, 2, 6)
    assert empty.pieces([]) == []
    assert empty.find(["a"]).tolist() == [-1]
    assert empty.where("title = 'a'").tolist() == []
    job = Job.begin(empty.place, toy_settings("int4"), 1, {}, "add")
    job.write(0, toy_vectors(2), [Document("a"), Document("b")])
    assert [p.text for p in job.commit().pieces([0, 1])] == ["a", "b"]


def test_threads_read_together(tmp_path, monkeypatch):
    """With fewer files mapped than the store has, so that they take turns."""
    monkeypatch.setattr("clara_jax.search.store.OPEN_FILES", 4)
    store = make_toy(tmp_path / "s", 40, "int8")
    expected = store.vectors(range(40))
    texts = [piece.text for piece in store.pieces(range(40))]

    def read(seed):
        ids = np.random.default_rng(seed).permutation(40)
        np.testing.assert_array_equal(store.vectors(ids), expected[ids])
        assert [p.text for p in store.pieces(ids)] == [texts[id] for id in ids]
        assert (store.find([texts[id] for id in ids]) == ids).all()
        assert store.where(f"number >= {seed}").tolist() == [*range(seed, 40)]
        return len(ids)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(16))) == [40] * 16


def test_another_model_is_refused(tmp_path):
    place = make_toy(tmp_path / "s", fingerprint="abc1").place
    assert Store.open(place, "abc1").fingerprint == "abc1"
    with pytest.raises(
        ClaraError, match="another model.*abc1.*that of.*def2.*../model"
    ):
        Store.open(place, "def2")


def test_settings_come_back(tmp_path):
    settings = toy_settings("int8", base="../base", compute="float32")
    store = write_store(tmp_path / "s", settings, toy_vectors(2), toy_pieces(2))
    assert store.settings.center
    assert Store.open(tmp_path / "s").settings == store.settings
    found = vars(store.settings) | {"center": ""}
    assert found == vars(settings)


def test_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ClaraError, match="holds no store .*clara_jax.compress`"):
            Store.open(path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(ClaraError, match="other: holds no store .*compress`"):
        Store.open(tmp_path / "other")
    with pytest.raises(ClaraError, match="file: is a file; give a folder"):
        Store.open(tmp_path / "file")


def test_an_unfinished_store(tmp_path):
    Job.begin(tmp_path / "s", toy_settings(), 1, {})
    with pytest.raises(ClaraError, match="is not finished; go on with the same"):
        Store.open(tmp_path / "s")


def test_the_format_before_lance(tmp_path):
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(ClaraError, match="before Lance; .*--convert .*--store NEW`"):
        Store.open(tmp_path)
    with pytest.raises(ClaraError, match="before Lance; .*--convert"):
        write_new(tmp_path)


def test_another_format(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "FORMAT", 3)
    place = make_toy(tmp_path / "s").place
    monkeypatch.undo()
    with pytest.raises(ClaraError, match="s: is a Lance dataset, but .* of format 2"):
        Store.open(place)


@pytest.mark.parametrize("note", [None, b"{", b"[1]", b"{}"])
def test_a_dataset_of_something_else(tmp_path, note):
    schema = pa.schema([("a", pa.int64())], note and {b"clara": note})
    lance.write_dataset(pa.table({"a": [1]}, schema), tmp_path / "s")
    for use in (Store.open, write_new, write_added, compact_all):
        with pytest.raises(ClaraError, match="s: is a Lance dataset, but not a store"):
            use(tmp_path / "s")


def test_versions(tmp_path):
    path = tmp_path / "s"
    first = contents(make_toy(path).place)
    delete(path, ["d1", "d5"])
    left = contents(path)
    assert left == [row for row in first if row[1].id not in ("d1", "d5")]
    last = write_added(path)
    added = contents(path)
    assert (added[:5], len(added)) == (left, 11)
    assert contents(path, 1) == first
    assert contents(path, 2) == left
    assert Store.open(path, at=1).version == 1
    with pytest.raises(ClaraError, match="version 2 is no longer whole"):
        Store.open(path, at=2).newest()
    known = ", ".join(str(n + 1) for n in range(last.version))
    with pytest.raises(ClaraError, match=f"s: has no version 99; there are {known}$"):
        Store.open(path, at=99)


def test_a_reader_that_was_open_before_a_compaction(tmp_path):
    """It goes on with the same ids; what it has not read yet it reads anew."""
    path = tmp_path / "s"
    make_toy(path, 12)
    expected = contents(path)
    old, fresh = Store.open(path), Store.open(path)
    old.vectors(old.ids)
    delete(path, ["d0", "d4"])
    compact(path)
    kept = [row for row in range(12) if row not in (0, 4)]
    for store in (old, fresh):
        found = store.vectors(kept)
        assert [v.tobytes() for v in found] == [expected[row][2] for row in kept]
        assert store.pieces(kept) == [expected[row][1] for row in kept]
        assert store.find(["text 7 of d", "text 4 of d"]).tolist() == [7, -1]
    for read in (fresh.vectors, fresh.pieces):
        with pytest.raises(Gone, match="has no row 4, or has it no longer"):
            read([4])
    assert contents(path) == [expected[row] for row in kept]


def test_other_readings_of_a_reader_that_was_open_before_a_compaction(tmp_path):
    path = tmp_path / "s"
    expected = len(make_toy(path, 12)) - 1
    stores = [Store.open(path) for _ in range(6)]
    delete(path, ["d4"])
    compact(path)
    assert len(stores[0].where("number >= 0")) == expected
    assert len(stores[1].known_ids()) == expected
    assert len(stores[2].matching([f"d{i}" for i in range(12)])) == expected
    assert stores[3].contents() == Store.open(path).contents()
    assert stores[4].find(["text 4 of d"]).tolist() == [-1]
    stores[5].refresh()
    assert stores[5].has([4, 5]).tolist() == [False, True]


def test_a_version_that_was_asked_for_is_not_exchanged_for_another(tmp_path):
    path = tmp_path / "s"
    make_toy(path, 12)
    earlier = Store.open(path, at=1)
    delete(path, ["d4"])
    compact(path)
    for read in (earlier.vectors, earlier.pieces):
        with pytest.raises(ClaraError, match="version 1 is no longer whole.*--at") as e:
            read([3])
        assert not isinstance(e.value, Gone)


def test_a_damaged_manifest_leaves_the_earlier_versions(tmp_path):
    path = tmp_path / "s"
    make_toy(path, 7)
    delete(path, ["d1"])
    newest = min((path / "_versions").glob("*.manifest"))  # Lance counts down
    newest.write_bytes(newest.read_bytes()[:100])
    for at in (None, 2):
        with pytest.raises(ClaraError, match="cannot be read.*earlier .*answer --at N"):
            Store.open(path, at=at)
    assert len(Store.open(path, at=1)) == 7


@pytest.mark.parametrize(
    "condition",
    [
        "number = 1 garbage",
        "number >= 0; drop table x",
        "number >= 0 limit 1",
        "number / 0 = 1",
        "cast(id as int) = 1",
        "regexp_match(text, '[')",
        "count(*) > 1",
    ],
)
def test_conditions_are_read_to_their_end(tmp_path, condition):
    store = make_toy(tmp_path / "s")
    with pytest.raises(ClaraError, match="^where .*the fields are id, title"):
        store.where(condition)
    with pytest.raises(ClaraError, match="or .true': a '.' closes no '.'"):
        store.where("number = 1) or (true")
    assert store.where("(number = 1) or id = ')' or id = 'x('").tolist() == [1]


def test_where(tmp_path):
    pieces = [
        Document(
            f"t{i}",
            f"d{i}",
            source="a.txt" if i < 6 else "b.txt",
            metadata={
                "year": 2015 + i,
                "team": "legal" if i % 2 else "it's",
                "on": i > 3,
            },
        )
        for i in range(10)
    ]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(10), pieces, 4)
    assert {"year", "team", "on", "id", "source"} <= set(store.fields)

    def found(condition):
        return store.where(condition).tolist()

    assert found("year >= 2020 and team = 'legal'") == [5, 7, 9]
    assert found("team = 'it''s' and not on") == [0, 2]
    assert found("source in ('b.txt')") == [6, 7, 8, 9]
    assert found("id = 'd3' or year between 2016 and 2017") == [1, 2, 3]
    assert found("text like '%7'") == [7]
    assert found("year > 3000") == []
    assert found("team is null") == []
    delete(store.place, ["d7"])
    assert store.newest().where("year >= 2020").tolist() == [5, 6, 8, 9]


@pytest.mark.parametrize(
    "wrong",
    [
        "number >=",
        "nothing = 1",
        "number = 'x'",
        "number",
        "",
        "foo(number)",
        "title = 'Not found",
        "number = 'Not found: x'",
    ],
)
def test_where_is_not_a_condition(tmp_path, wrong):
    store = make_toy(tmp_path / "s")
    with pytest.raises(ClaraError, match="^where .*the fields are id, title") as e:
        store.where(wrong)
    assert "\n" not in str(e.value)
    assert "/" not in str(e.value)
    assert str(e.value).endswith("number")


def test_opening_reads_no_data(tmp_path):
    path = tmp_path / "s"
    make_toy(path, 30)
    shutil.rmtree(path / "data")
    store = Store.open(path)
    assert (len(store), store.version) == (30, 1)
    assert json.loads(store.dataset.schema.metadata[b"clara"])["format"] == 2
    with pytest.raises(Gone, match="s: is not whole"):
        store.vectors([3])
    with pytest.raises(Gone, match="s: is not whole"):
        store.pieces([3])


@pytest.mark.slow
def test_many_rows(tmp_path):
    count, shard = 300_000, 4096
    numbers = np.arange(count, dtype=np.float32)
    vectors = np.stack([np.cos(numbers * (i + 1)) for i in range(8)], -1)[:, None]
    pieces = [Document(f"text {i}", f"d{i}", stop=9) for i in range(count)]
    settings = toy_settings("int8", width=8, memory=type(toy_settings().memory)(16, 16))
    path = tmp_path / "s"
    write_store(path, settings, vectors.astype(np.float32), pieces, shard)
    delete(path, ["d5", "d250000"])
    store = Store.open(path)
    some = [299_999, 0, 123_456]
    np.testing.assert_allclose(store.vectors(some), vectors[some], atol=0.005)
    assert [piece.id for piece in store.pieces(some)] == [f"d{i}" for i in some]
    assert store.find(["text 77777", "text", "text 5"]).tolist() == [77777, -1, -1]
    assert store.matching(["d200000", "d5"]).tolist() == [200_000]
    assert len(store) == count - 2
    compact(path)
    again = Store.open(path)
    np.testing.assert_array_equal(again.ids, store.ids)
    ids = again.ids[:: len(again) // 1000]
    np.testing.assert_allclose(again.vectors(ids), vectors[ids], atol=0.005)
