"""Deleted, compacted, checked; killed at every step, and beside others."""

import json
import signal

import numpy as np
import pytest
from toy_store import (
    SHARD,
    WIDTH,
    compact_all,
    copy_tree,
    delete_some,
    fails_at,
    make_toy,
    run,
    start,
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
from clara_jax.search import CODECS, Job, Store, check, compact, delete
from clara_jax.search.manifest import json_bytes


def contents(path):
    """Text, id and vectors of each live piece, in order."""
    store = Store.open(path)
    rows = np.flatnonzero(store.live)
    pieces = store.pieces(rows)
    vectors = store.vectors(rows)
    assert store.find([piece.text for piece in pieces]).tolist() == rows.tolist()
    return [
        (piece, vector.tobytes(), norm.tobytes())
        for piece, vector, norm in zip(pieces, vectors, store.norms(rows), strict=True)
    ]


def test_delete(tmp_path):
    path = make_toy(tmp_path / "s").path
    before = contents(path)
    assert delete(path, ["d1", "d5", "d1"]) == 2
    store = Store.open(path)
    assert (store.rows, len(store), store.generation, store.epoch) == (7, 5, 2, 0)
    assert store.deleted.tolist() == [1, 5]
    assert store.live.tolist() == [i not in (1, 5) for i in range(7)]
    assert contents(path) == [before[i] for i in (0, 2, 3, 4, 6)]
    assert delete(path, ["d6"]) == 1
    assert Store.open(path).deleted.tolist() == [1, 5, 6]
    assert [p.name for p in path.glob("deleted*")] == ["deleted-000003.npy"]
    assert check(path) == []
    assert delete(path, []) == 0
    assert Store.open(path).generation == 3


def test_delete_all_parts_of_a_document(tmp_path):
    names = ["x", "x", "y", "x", ""]
    pieces = [
        Document(f"t{i}", name, part=i + 1, parts=9) for i, name in enumerate(names)
    ]
    path = write_store(tmp_path / "s", toy_settings(), toy_vectors(5), pieces, 2).path
    assert delete(path, ["x"]) == 3
    assert [piece.text for piece, *_ in contents(path)] == ["t2", "t4"]


@pytest.mark.parametrize("wrong", [["d1", "no", "d9"], ["d2"], [""]])
def test_delete_what_is_not_there(tmp_path, wrong):
    path = make_toy(tmp_path / "s").path
    delete(path, ["d2"])
    before = tree(path)
    with pytest.raises(
        ClaraError, match="s: has no document.*; nothing was deleted"
    ) as e:
        delete(path, wrong)
    assert all(f"'{name}'" in str(e.value) for name in wrong if name != "d1")
    assert tree(path) == before


def test_edits_of_no_store(tmp_path):
    for edit in (delete_some, compact_all):
        with pytest.raises(ClaraError, match="none: holds no store.json"):
            edit(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", CODECS)
def test_compact(tmp_path, dtype):
    path = make_toy(tmp_path / "s", 20, dtype).path
    delete(path, [f"d{i}" for i in (0, 3, 4, 5, 11, 19)])
    before = contents(path)
    said = []
    assert compact(path, lambda *numbers: said.append(numbers)) == 6
    store = Store.open(path)
    assert (store.rows, len(store), store.generation, store.epoch) == (14, 14, 3, 1)
    assert store.deleted.tolist() == []
    assert contents(path) == before
    assert said[-1] == (14, 14)
    assert check(path) == []
    names = {p.name for p in path.iterdir()} | {p.name for p in path.glob("shards/*")}
    assert names == {"store.json", "shards", "000003-000000"}
    # Nothing is left to be done.
    before = tree(path)
    assert compact(path) == 0
    assert tree(path) == before


def test_compact_leaves_whole_shards_alone(tmp_path, monkeypatch):
    """Shards of 4 rows: those that are whole stay, small ones are joined."""
    monkeypatch.setattr("clara_jax.search.maintenance.SHARD_ROWS", 4)
    path = make_toy(tmp_path / "s", 18).path  # 6 shards of 3 rows
    delete(path, ["d4", "d6", "d7", "d8", "d9", "d10"])
    before, files = contents(path), tree(path)
    assert compact(path) == 6
    # Left: 0-2 whole, 3 and 5, none, 11, then 12-14 and 15-17 whole.
    assert [(s.name, s.rows) for s in Store.open(path).manifest.shards] == [
        ("000001-000000", 3),
        ("000003-000000", 3),
        ("000001-000004", 3),
        ("000001-000005", 3),
    ]
    assert contents(path) == before
    after = tree(path)
    kept = [name for name in after if name.startswith("shards/000001")]
    assert len(kept) == 3 * 7
    assert all(after[name] == files[name] for name in kept)


def test_compact_joins_what_was_added_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("clara_jax.search.maintenance.SHARD_ROWS", 8)
    path = make_toy(tmp_path / "s", 1).path
    for i in range(10):
        with Job.begin(path, toy_settings(), 1, {"i": i}, "add") as job:
            job.write(0, toy_vectors(1, seed=i), [Document(f"t{i}", f"i{i}")])
            job.commit()
    before = contents(path)
    assert len(before) == 11
    assert compact(path) == 0
    assert [s.rows for s in Store.open(path).manifest.shards] == [8, 3]
    assert Store.open(path).epoch == 1
    assert contents(path) == before
    # The last shard is small, but there is nothing to join it to.
    assert compact(path) == 0
    assert Store.open(path).epoch == 1


def test_compact_bounds_what_it_keeps_in_memory(tmp_path, monkeypatch):
    row = 2 * WIDTH * 2
    monkeypatch.setattr("clara_jax.search.maintenance.SHARD_BYTES", 2 * row + 1)
    path = make_toy(tmp_path / "s", 9).path
    delete(path, ["d0"])
    compact(path)
    assert [s.rows for s in Store.open(path).manifest.shards] == [2, 3, 3]


def test_delete_everything(tmp_path):
    path = make_toy(tmp_path / "s").path
    delete(path, [f"d{i}" for i in range(7)])
    assert len(Store.open(path)) == 0
    assert compact(path) == 7
    store = Store.open(path)
    assert (store.rows, store.manifest.shards) == (0, ())
    assert contents(path) == []
    assert check(path) == []
    write_added(path)
    assert len(contents(path)) == 2 * SHARD


def test_a_reader_survives_compaction(tmp_path):
    path = make_toy(tmp_path / "s").path
    reader = Store.open(path)
    expected = reader.vectors([6])
    delete(path, ["d0"])
    compact(path)
    # What it has opened it can still read; of the rest it says why not.
    np.testing.assert_array_equal(reader.vectors([6]), expected)
    with pytest.raises(
        ClaraError, match="if the store was compacted since.*open it again"
    ):
        reader.vectors([0])


def prepare(path):
    """A store with a deleted document and two small shards."""
    make_toy(path, 7)
    delete(path, ["d2"])
    return path


@pytest.mark.parametrize("action", [delete_some, compact_all])
def test_killed_before_every_step(tmp_path, action):
    base = prepare(tmp_path / "base")
    whole = copy_tree(base, tmp_path / "whole")
    action(whole)
    states = [tree(base)["store.json"], tree(whole)["store.json"]]
    seen = set()
    for step in range(200):
        path = copy_tree(base, tmp_path / f"{step}")
        status = run(action.__name__, path, die_at=step)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        state = states.index((path / "store.json").read_bytes())
        seen.add(state)
        assert contents(path) == contents(whole if state else base)
        for finding in check(path):
            assert "does not belong to the store" in finding
        # The next change clears up, and is not disturbed by what lies about.
        other = copy_tree(path, tmp_path / f"{step} then others")
        delete(other, ["d6"])
        assert check(other) == []
        # Again, as after a kill. What was deleted already cannot be deleted again.
        if not (state and action is delete_some):
            action(path)
            assert tree(path) == tree(whole)
    assert step > 5
    assert seen == {0, 1}
    assert tree(path) == tree(whole)


@pytest.mark.parametrize("action", [delete_some, compact_all])
def test_the_disk_is_full_before_every_step(tmp_path, action):
    base = prepare(tmp_path / "base")
    failures = 0
    for step in range(200):
        path = copy_tree(base, tmp_path / f"{step}")
        fails, met = fails_at(step, action, path)
        if not met:
            break
        failures += fails
        assert not fails or tree(path) == tree(base)
    assert failures > 2


def test_replaced_and_compacted(tmp_path):
    path = make_toy(tmp_path / "s", 8).path
    write_replaced(path)
    before = contents(path)
    assert len(before) == 8
    assert compact(path) == 6
    assert contents(path) == before
    assert delete(path, ["d7", "d0"]) == 2
    assert compact(path) == 2
    assert len(contents(path)) == 6
    assert check(path) == []


def test_an_edit_beside_a_writer(tmp_path):
    path = make_toy(tmp_path / "s").path
    busy = start("write_added", path, hold_at=20)
    try:
        for edit in (delete_some, compact_all):
            with pytest.raises(
                ClaraError, match="s: another process is writing to this"
            ):
                edit(path)
    finally:
        busy.kill()
        busy.wait()
    # The writer is gone, what it began is not.
    for edit in (delete_some, compact_all):
        with pytest.raises(
            ClaraError, match="s: documents are still being added; .*job"
        ):
            edit(path)
    assert len(Store.open(path)) == 7
    assert len(write_added(path)) == 13
    assert delete_some(path) == 3
    assert check(path) == []


def test_a_writer_and_an_edit_beside_an_edit(tmp_path, monkeypatch):
    monkeypatch.setattr("clara_jax.search.manifest.PATIENCE", 0.1)
    path = prepare(tmp_path / "s")
    busy = start("compact_all", path, hold_at=12)
    try:
        for write in (write_added, write_replaced):
            with pytest.raises(ClaraError, match="s: another process is editing this"):
                write(path)
        with pytest.raises(ClaraError, match="s: another process is"):
            delete(path, ["d6"])
        assert len(Store.open(path)) == 6
    finally:
        busy.kill()
        busy.wait()
    write_added(path)
    assert check(path) == []
    with pytest.raises(ClaraError, match="holds a finished store"):
        write_new(path)


@pytest.mark.parametrize("dtype", CODECS)
def test_a_whole_store(tmp_path, dtype):
    path = make_toy(tmp_path / "s", dtype=dtype).path
    delete(path, ["d2"])
    before, said = tree(path), []
    assert check(path, lambda *numbers: said.append(numbers)) == []
    assert tree(path) == before
    sizes = sum(
        len(data) for name, data in before.items() if name[:7] == "shards/" if data
    )
    assert said[-1] == (sizes, sizes)
    assert said == sorted(said)


@pytest.mark.parametrize("dtype", CODECS)
def test_a_flipped_bit_anywhere(tmp_path, dtype):
    """Each kind of file, at its beginning, in the middle and at its end."""
    path = make_toy(tmp_path / "s", 4, dtype).path
    delete(path, ["d2"])
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len({file.name for file in files}) == 8 + (dtype != "bfloat16")
    for file in files:
        data = file.read_bytes()
        for place in (0, len(data) // 3, len(data) // 2, len(data) - 1):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            found = check(path)
            assert len(found) == 1, (file, place, found)
            assert found[0].startswith(f"{file}: ")
            assert "\n" not in found[0]
        file.write_bytes(data)
    assert check(path) == []


def test_every_byte_of_the_manifest(tmp_path):
    path = make_toy(tmp_path / "s", 1).path
    file = path / "store.json"
    data = file.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        # Another space is the same JSON; nothing else may pass.
        if check(path) == []:
            assert json.loads(flipped) == json.loads(data)


def test_sizes_and_missing_files(tmp_path):
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000001"
    (shard / "norms.npy").write_bytes((shard / "norms.npy").read_bytes()[:-4])
    (shard / "texts.npy").unlink()
    with (shard / "pieces.arrow").open("ab") as file:
        file.write(b"more")
    (shard / "notes.txt").write_text("mine")
    found = sorted(check(path))
    assert [line.split(" (")[0] for line in found] == [
        f"{shard / 'norms.npy'}: is truncated",
        f"{shard / 'notes.txt'}: does not belong to the store",
        f"{shard / 'pieces.arrow'}: has grown",
        f"{shard / 'texts.npy'}: is missing",
    ]


def test_a_missing_shard(tmp_path):
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000002"
    shard.rename(path / "elsewhere")
    assert check(path) == [f"{shard}: cannot be read (No such file or directory)"]


def test_the_note_of_a_shard(tmp_path):
    """Without its checksums, sizes and counts are still compared."""
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000000"
    values = json.loads((shard / "shard.json").read_text())
    values["files"]["norms.npy"]["checksum"] = "0" * 32
    (shard / "shard.json").write_bytes(json_bytes(values))
    (shard / "ids.npy").unlink()
    found = check(path)
    assert len(found) == 2
    assert "ids.npy: is missing" in found[0]
    assert "shard.json: is damaged" in found[1]
    assert "by size only" in found[1]


def test_two_shards_changed_about(tmp_path):
    path = make_toy(tmp_path / "s", 6).path
    one, other = (path / "shards" / f"000001-00000{i}" for i in range(2))
    one.rename(path / "x")
    other.rename(one)
    (path / "x").rename(other)
    assert len(check(path)) >= 2
    assert any(f"{one / 'shard.json'}: is damaged" in line for line in check(path))


def test_deleted_rows(tmp_path):
    path = make_toy(tmp_path / "s").path
    delete(path, ["d2"])
    file = path / "deleted-000002.npy"
    data = file.read_bytes()
    np.save(file, np.array([3]))
    (found,) = check(path)
    assert found.startswith(f"{file}: is damaged (its checksum is wrong)")
    file.unlink()
    assert "deleted-000002.npy: is missing" in check(path)[0]
    file.write_bytes(data)
    assert check(path) == []


def test_what_does_not_belong(tmp_path):
    path = make_toy(tmp_path / "s").path
    for name in ("deleted-000009.npy", ".store.json.1a.tmp", "shards/000001-000099"):
        (path / name).write_text("x")
    (path / "shards" / ".000002-000000.0-1").mkdir()
    (path / "index").mkdir()
    found = check(path)
    assert len(found) == 4
    assert all("does not belong to the store; a command that was" in f for f in found)
    # As the lines say.
    delete(path, ["d0"])
    assert check(path) == []


def test_while_documents_are_added(tmp_path):
    path = make_toy(tmp_path / "s").path
    busy = start("write_added", path, hold_at=20)
    try:
        assert [p.name for p in path.glob("shards/000002-*")] == ["000002-000000"]
        assert check(path) == []
        norms = path / "shards" / "000002-000000" / "norms.npy"
        data = norms.read_bytes()
        norms.write_bytes(data[:-1] + b"x")
        assert check(path) == [f"{norms}: is damaged (its checksum is wrong)"]
        norms.write_bytes(data)
    finally:
        busy.kill()
        busy.wait()
    assert check(path) == []
    write_added(path)
    assert check(path) == []


def test_check_of_no_store(tmp_path):
    with pytest.raises(ClaraError, match="holds no store.json"):
        check(tmp_path)
    with Job.begin(tmp_path / "s", toy_settings(), 2, {}) as job:
        job.write(0, toy_vectors(1), toy_pieces(1))
    with pytest.raises(ClaraError, match="s: is not finished"):
        check(tmp_path / "s")


def test_copies_are_whole(tmp_path):
    path = make_toy(tmp_path / "s").path
    assert check(copy_tree(path, tmp_path / "elsewhere")) == []
