"""Deleted, compacted, checked; what is damaged is found and never used."""

import datetime
import shutil

import pytest
from toy_store import (
    SHARD,
    compact_all,
    contents,
    copy_tree,
    delete_some,
    make_toy,
    toy_pieces,
    toy_settings,
    toy_vectors,
    tree,
    write_added,
    write_new,
    write_replaced,
    write_store,
)

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Job, Store, check, compact, delete, versions


def ids_of(path):
    return [piece.id for _, piece, _ in contents(path)]


def test_delete(tmp_path):
    path = make_toy(tmp_path / "s").place
    before = contents(path)
    assert delete(path, ["d1", "d5", "d1"]) == 2
    store = Store.open(path)
    assert (store.ids.tolist(), store.version) == ([0, 2, 3, 4, 6], 2)
    assert store.has(range(7)).tolist() == [i not in (1, 5) for i in range(7)]
    assert contents(path) == [before[i] for i in (0, 2, 3, 4, 6)]
    assert delete(path, ["d6"]) == 1
    assert Store.open(path).ids.tolist() == [0, 2, 3, 4]
    assert delete(path, []) == 0
    assert Store.open(path).version == 3
    assert check(path) == []


def test_delete_all_parts_of_a_document(tmp_path):
    names = ["x", "x", "x", "y", ""]
    pieces = [
        Document(f"t{i}", name, part=i + 1, parts=9) for i, name in enumerate(names)
    ]
    path = write_store(tmp_path / "s", toy_settings(), toy_vectors(5), pieces, 3).place
    assert delete(path, ["x"]) == 3
    assert [piece.text for _, piece, _ in contents(path)] == ["t3", "t4"]


@pytest.mark.parametrize(
    "wrong", [["d1", "no", "d9"], ["d2"], [""], ["'", "\u2028", "d1' or true --"]]
)
def test_delete_what_is_not_there(tmp_path, wrong):
    path = make_toy(tmp_path / "s").place
    delete(path, ["d2"])
    before = tree(tmp_path)
    with pytest.raises(
        ClaraError, match="s: has no document.*; nothing was deleted"
    ) as error:
        delete(path, wrong)
    assert all(f"'{name}'" in str(error.value) for name in wrong if name != "d1")
    assert tree(tmp_path) == before


def test_edits_of_no_store(tmp_path):
    for edit in (delete_some, compact_all, check, versions):
        with pytest.raises(ClaraError, match="none: holds no store"):
            edit(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", CODECS)
def test_compact(tmp_path, dtype):
    path = tmp_path / "s"
    make_toy(path, 20, dtype)
    delete(path, [f"d{i}" for i in (0, 3, 4, 5, 11, 19)])
    before = contents(path)
    size = sum(len(data or b"") for data in tree(path).values())
    given_back = compact(path)
    assert given_back > 0
    assert sum(len(data or b"") for data in tree(path).values()) < size
    # Ids, documents and vectors to the last bit.
    assert contents(path) == before
    assert check(path) == []
    assert len(list((path / "data").iterdir())) == 1
    assert [number for number, *_ in versions(path)] == [Store.open(path).version]
    # Nothing is left to be done.
    before = tree(path)
    assert compact(path) == 0
    assert tree(path) == before


def test_compact_keeps_young_versions(tmp_path):
    path = make_toy(tmp_path / "s").place
    first = contents(path)
    delete(path, ["d1"])
    left = contents(path)
    assert compact(path, datetime.timedelta(days=1)) == 0
    assert [(number, rows) for number, _, rows in versions(path)][:2] == [
        (1, 7),
        (2, 6),
    ]
    assert (contents(path, 1), contents(path, 2), contents(path)) == (first, left, left)
    assert compact(path, datetime.timedelta(0)) > 0
    with pytest.raises(ClaraError, match="s: has no version 1; there are"):
        Store.open(path, at=1)
    assert contents(path) == left


def test_versions(tmp_path):
    path = make_toy(tmp_path / "s").place
    delete(path, ["d1"])
    write_added(path)
    found = versions(path)
    assert [(number, rows) for number, _, rows in found] == [(1, 7), (2, 6), (3, 12)]
    times = [time for _, time, _ in found]
    assert times == sorted(times)
    now = datetime.datetime.now(datetime.UTC)
    assert abs(now - times[-1]) < datetime.timedelta(hours=1)


def test_compact_joins_what_was_added_bit_by_bit(tmp_path):
    path = tmp_path / "s"
    make_toy(path, 1)
    for i in range(10):
        job = Job.begin(path, toy_settings(), 1, {"i": i}, "add")
        job.write(0, toy_vectors(1, seed=i), [Document(f"t{i}", f"i{i}")])
        job.commit()
    before = contents(path)
    assert len(list((path / "data").iterdir())) == 11
    compact(path)
    assert len(list((path / "data").iterdir())) == 1
    assert contents(path) == before


def test_delete_everything(tmp_path):
    path = make_toy(tmp_path / "s").place
    delete(path, [f"d{i}" for i in range(7)])
    assert contents(path) == []
    compact(path)
    assert (contents(path), check(path)) == ([], [])
    write_added(path)
    assert ids_of(path) == [f"a{i}" for i in range(2 * SHARD)]
    # Ids are never given again.
    assert Store.open(path).ids.min() >= 7


def test_ids_outlive_all_changes(tmp_path):
    path = make_toy(tmp_path / "s", 8).place
    known = {piece.id: (id, vector) for id, piece, vector in contents(path)}
    changes = (
        lambda: delete(path, ["d0", "d7"]),
        lambda: compact(path),
        lambda: write_added(path),
        lambda: delete(path, ["d2"]),
        lambda: compact(path),
        lambda: write_added(path, name="b"),
        lambda: delete(path, ["a5", "b0"]),
        lambda: compact(path),
    )
    for change in changes:
        change()
        for id, piece, vector in contents(path):
            assert known.setdefault(piece.id, (id, vector)) == (id, vector)
    assert len({id for id, _ in known.values()}) == len(known) == 20
    before = contents(path)
    write_replaced(path)
    assert [row for row in contents(path) if row[1].id[0] != "d"] == [
        row for row in before if row[1].id[0] != "d"
    ]


@pytest.mark.parametrize("dtype", CODECS)
def test_a_whole_store(tmp_path, dtype):
    path = make_toy(tmp_path / "s", dtype=dtype).place
    delete(path, ["d2"])
    before = tree(tmp_path)
    assert check(path) == []
    assert tree(tmp_path) == before


def test_a_copy_is_whole(tmp_path):
    path = tmp_path / "s"
    make_toy(path)
    delete(path, ["d2"])
    copy_tree(path, tmp_path / "elsewhere")
    expected = contents(path)
    shutil.rmtree(path)
    assert check(tmp_path / "elsewhere") == []
    assert contents(tmp_path / "elsewhere") == expected


def test_a_job_that_is_not_finished(tmp_path):
    path = tmp_path / "s"
    make_toy(path)
    job = Job.begin(path, toy_settings(), 2, {}, "add")
    job.write(0, toy_vectors(1), [Document("a")])
    (found,) = check(path)
    assert f"{path}/_jobs/" in found
    assert "/job.json: documents are still being put in; finish that with" in found
    with pytest.raises(ClaraError, match="new: is not finished"):
        write_new(tmp_path / "new", 0, 2)
        check(tmp_path / "new")


def read_or_refuse(path, expected):
    """Read each row as an answer does: as it was written, or an error of ours."""
    refused = 0
    for id, piece, vector in expected:
        try:
            store = Store.open(path)
            (found,) = store.vectors([id])
            pieces = store.pieces([id])
        except ClaraError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert (found.tobytes(), pieces) == (vector, [piece])
    return refused


def test_sizes_and_missing_files(tmp_path):
    path = tmp_path / "s"
    make_toy(path)
    expected = contents(path)
    files = sorted((path / "data").iterdir())
    for file in files:
        data = file.read_bytes()
        for wrong, said in (
            (data[:-1], f"is truncated ({len(data) - 1} bytes, not {len(data)})"),
            (data[: len(data) // 2], "is truncated"),
            (b"", "is truncated"),
            (data + b"0", f"has grown ({len(data) + 1} bytes, not {len(data)})"),
            (None, "is missing"),
        ):
            file.unlink() if wrong is None else file.write_bytes(wrong)
            (found,) = check(path)
            assert found.startswith(f"{file}: {said}")
            refused = read_or_refuse(path, expected)
            assert refused > 0 or said.startswith("has grown")
        file.write_bytes(data)
    assert check(path) == []
    for file in files[:2]:
        file.unlink()
    assert len(check(path)) == 2


def flipped(path, file, places, expected):
    """Flip a byte at each place; return how often it was found, and made no matter."""
    data, found, harmless = file.read_bytes(), 0, 0
    for place in places:
        file.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        findings = check(path)
        if findings:
            found += 1
            assert all(file.name in line and "\n" not in line for line in findings)
            read_or_refuse(path, expected)
        else:
            harmless += 1
            assert contents(path) == expected
    file.write_bytes(data)
    assert check(path) == []
    return found, harmless


def tiny(path, dtype="bfloat16"):
    """A store of one file, with fields of every type, and what it holds."""
    metadata = {"n": 7, "x": 0.5, "on": True, "t": "text", "l": ["a"], "j": {"a": 1}}
    pieces = [
        Document(f"text {i}", f"d{i}", f"Title {i}", "d.txt", metadata=metadata)
        for i in range(3)
    ]
    write_store(path, toy_settings(dtype), toy_vectors(3), pieces)
    (file,) = (path / "data").iterdir()
    return file, contents(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_flipped_byte_here_and_there(tmp_path, dtype):
    path = tmp_path / "s"
    file, expected = tiny(path, dtype)
    places = range(0, file.stat().st_size, 61)
    found, _ = flipped(path, file, places, expected)
    assert found > len(places) / 3


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "every"), [("bfloat16", 1), ("int4", 3)])
def test_a_flipped_byte_anywhere(tmp_path, dtype, every):
    path = tmp_path / "s"
    file, expected = tiny(path, dtype)
    size = file.stat().st_size
    places = range(0, size, every)
    found, harmless = flipped(path, file, places, expected)
    print(f"{dtype}: {size} bytes, {found} found, {harmless} make no difference")
    assert found > len(places) / 3


def test_every_bit_of_the_vectors(tmp_path):
    """Those of one row; the others' vectors are read as they were."""
    path = tmp_path / "s"
    file, expected = tiny(path)
    data = file.read_bytes()
    vector = Store.open(path).arrays([1])["codes"].tobytes()
    start = data.index(vector)
    for bit in range(8 * len(vector)):
        changed = bytearray(data)
        changed[start + bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        store = Store.open(path)
        with pytest.raises(ClaraError, match="s: part 1 of document 'd1' is damaged"):
            store.vectors([0, 1])
        found = store.vectors([2, 0])
        assert [v.tobytes() for v in found] == [expected[2][2], expected[0][2]]
    (finding,) = check(path)
    assert finding.startswith(f"{path}/data/{file.name}: part 1 of document 'd1' is")
    # As it says, that document can be put in again.
    job = Job.begin(path, toy_settings(), 1, {}, "replace")
    job.write(0, toy_vectors(1, seed=9), [Document("new", "d1")])
    job.commit()
    assert check(path) == []
    assert [row[1].text for row in contents(path)] == ["text 0", "text 2", "new"]


def test_nothing_is_dropped_from_a_damaged_store(tmp_path):
    path = tmp_path / "s"
    file, expected = tiny(path)
    vector = Store.open(path).arrays([1])["codes"].tobytes()
    data = file.read_bytes()
    changed = bytearray(data)
    changed[data.index(vector)] ^= 1
    file.write_bytes(changed)
    delete(path, ["d0"])
    before = tree(path)
    with pytest.raises(ClaraError, match="'d1' is damaged .*; nothing is dropped from"):
        compact(path)
    assert tree(path) == before
    assert read_or_refuse(path, expected[1:]) == 1
    delete(path, ["d1"])  # the remedy, or --replace
    compact(path)
    assert check(path) == []


def test_a_missing_file_of_deleted_rows(tmp_path):
    path = make_toy(tmp_path / "s").place
    delete(path, ["d2"])
    (file,) = (tmp_path / "s" / "_deletions").iterdir()
    file.unlink()
    found = check(path)
    assert found
    assert all("\n" not in line for line in found)
    with pytest.raises(ClaraError, match="s: is not whole"):
        contents(path)


def test_an_addition_and_edits_beside_each_other(tmp_path):
    path = make_toy(tmp_path / "s").place
    fields = {"number": "int"}
    job = Job.begin(path, toy_settings(), 1, {}, "add", fields)
    job.write(0, toy_vectors(2, seed=3), toy_pieces(2, name="n"))
    delete(path, ["d1"])
    compact(path)
    delete(path, ["d2"])
    job.commit()
    assert ids_of(path) == ["d0", "d3", "d4", "d5", "d6", "n0", "n1"]
    assert check(path) == []
