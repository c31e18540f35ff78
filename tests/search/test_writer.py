import errno
import json
import os
import random
import resource
import signal

import numpy as np
import pytest
from toy_store import (
    copy_tree,
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
)

from clara_jax.errors import ClaraError
from clara_jax.search import (
    CODECS,
    Job,
    Piece,
    Store,
    check,
    decode,
    delete,
    encode,
    write_shard,
    write_store,
)
from clara_jax.search.jobs import check_folder


def texts(store):
    rows = np.flatnonzero(store.live)
    return [piece.text for piece in store.pieces(rows)]


@pytest.mark.parametrize("dtype", CODECS)
def test_a_shard(tmp_path, dtype):
    vectors, pieces = toy_vectors(4), toy_pieces(4)
    folder = tmp_path / "shards" / "x"
    info = write_shard(folder, vectors, pieces, dtype)
    assert (info.name, info.rows) == ("x", 4)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files == info.sizes
    codes, scales = encode(vectors, dtype)
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), codes)
    if scales is not None:
        np.testing.assert_array_equal(np.load(folder / "scales.npy"), scales)
    norms = np.linalg.norm(decode(codes, scales, dtype, 6), axis=(1, 2))
    np.testing.assert_allclose(np.load(folder / "norms.npy"), norms, rtol=1e-6)
    # Written again, over itself: the same bytes.
    before = tree(tmp_path)
    assert write_shard(folder, vectors, pieces, dtype) == info
    assert tree(tmp_path) == before


def test_memory_layout_does_not_matter(tmp_path):
    vectors, pieces = toy_vectors(4), toy_pieces(4)
    one = write_shard(tmp_path / "a" / "x", vectors, pieces, "bfloat16")
    turned = np.asfortranarray(vectors)
    assert write_shard(tmp_path / "b" / "x", turned, pieces, "bfloat16") == one
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_an_empty_shard(tmp_path):
    info = write_shard(tmp_path / "x", toy_vectors(0), [], "int8")
    assert info.rows == 0
    assert np.load(tmp_path / "x" / "vectors.npy").shape == (0, 2, 6)


def test_vectors_and_pieces_of_one_number(tmp_path):
    with pytest.raises(ClaraError, match="3 document vectors for 2 pieces"):
        write_shard(tmp_path / "x", toy_vectors(3), toy_pieces(2), "int8")
    with Job.begin(tmp_path / "s", toy_settings(), 1, {}) as job:
        with pytest.raises(ClaraError, match="2 vectors of width 6.*was given 2 of 5"):
            job.write(0, toy_vectors(1, width=5), toy_pieces(1))
        with pytest.raises(ClaraError, match="was given 3 of 6"):
            job.write(0, toy_vectors(1, count=3), toy_pieces(1))


def test_a_job_in_one_go(tmp_path):
    store = write_new(tmp_path / "s")
    assert texts(store) == [piece.text for piece in toy_pieces(9)]
    assert (store.generation, store.epoch, len(store)) == (1, 0, 9)
    assert check(store.path) == []
    names = {path.name for path in store.path.iterdir()}
    assert names == {"store.json", "shards"}


def test_shards_of_any_size_and_none(tmp_path):
    sizes = [2, 0, 5]
    with Job.begin(tmp_path / "s", toy_settings("int4"), 3, {}) as job:
        for k in job.missing():
            pieces = toy_pieces(sizes[k], name=f"n{k}-")
            job.write(k, toy_vectors(sizes[k]), pieces)
        store = job.commit()
    assert [shard.rows for shard in store.manifest.shards] == sizes
    assert [len(tile.codes) for tile in store.tiles(9)] == [2, 5]
    assert store.pieces([6, 1, 2])[1].id == "n0-1"
    assert check(store.path) == []


def test_parts_in_any_order_give_the_same_bytes(tmp_path):
    write_new(tmp_path / "one", shards=5)
    assert write_new(tmp_path / "two", 1, 2, 5, backwards=True) is None
    assert not (tmp_path / "two" / "store.json").exists()
    with pytest.raises(ClaraError, match="two: is not finished"):
        Store.open(tmp_path / "two")
    assert len(write_new(tmp_path / "two", 0, 2, 5)) == 15
    assert write_new(tmp_path / "three", 2, 3, 5) is None
    assert write_new(tmp_path / "three", 0, 3, 5) is None
    assert len(write_new(tmp_path / "three", 0, 1, 5, backwards=True)) == 15
    for other in ("two", "three"):
        assert tree(tmp_path / other) == tree(tmp_path / "one")


def test_two_processes_write_one_store(tmp_path):
    write_new(tmp_path / "one", shards=8)
    pair = [
        start(
            "write_new", tmp_path / "two", part=i, parts=2, shards=8, backwards=i == 1
        )
        for i in range(2)
    ]
    assert [worker.wait() for worker in pair] == [0, 0]
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


@pytest.mark.parametrize("action", [write_new, write_added, write_replaced])
def test_killed_before_every_step(tmp_path, action):
    """Whatever the moment, the store is whole, and the same command makes it right."""
    base = tmp_path / "base"
    if action is not write_new:
        make_toy(base, 4)
    before = tree(base)
    whole = tmp_path / "whole"
    copy_tree(base, whole)
    action(whole, shards=2)
    after = tree(whole)
    for step in range(200):
        path = tmp_path / f"{step}"
        copy_tree(base, path)
        status = run(action.__name__, path, die_at=step, shards=2)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if before or (path / "store.json").exists():
            manifest = (path / "store.json").read_bytes()
            assert manifest in (before.get("store.json"), after["store.json"])
            assert len(Store.open(path)) in (4, len(Store.open(whole)))
        assert len(action(path, shards=2)) == len(Store.open(whole))
        assert tree(path) == after
    assert step > 20
    assert tree(path) == after


def test_killed_again_and_again(tmp_path):
    """At random moments; the work that is done is never done again."""
    write_new(tmp_path / "whole", shards=24)
    path, draw, kills = tmp_path / "s", random.Random(0), 0
    done: dict[str, int] = {}
    while run("write_new", path, shards=24, die_at=draw.randrange(30, 70)):
        kills += 1
        now = _written(path)
        assert done.items() <= now.items()
        assert len(now) > len(done)
        done = now
    assert kills > 3
    assert done.items() <= _written(path).items()
    assert tree(path) == tree(tmp_path / "whole")


def _written(path):
    """Shards that are there, and a number that changes when one is written anew."""
    folders = path.glob("shards/[!.]*/shard.json")
    return {file.parent.name: file.stat().st_ino for file in folders}


@pytest.mark.parametrize("action", [write_new, write_added, write_replaced])
def test_the_disk_is_full_before_every_step(tmp_path, action):
    base = tmp_path / "base"
    if action is not write_new:
        make_toy(base, 4)
    before, whole = tree(base), tmp_path / "whole"
    copy_tree(base, whole)
    action(whole, shards=2)
    after, failures = tree(whole), 0
    for step in range(200):
        path = tmp_path / f"{step}"
        copy_tree(base, path)
        fails, met = fails_at(step, action, path, shards=2)
        failures += fails
        now = tree(path)
        # What was there is as it was, and nothing half done lies about.
        assert before.items() <= now.items() or now == after
        assert not any(part.startswith(".") for name in now for part in name.split("/"))
        for folder in path.glob("shards/*"):
            assert (folder / "shard.json").exists()
        assert len(action(path, shards=2)) == len(Store.open(whole))
        assert tree(path) == after
        if not met:
            break
    assert failures > 15


def test_a_file_that_grows_too_large(tmp_path):
    """Here the system itself ends a write in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    vectors = toy_vectors(200)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(ClaraError, match="x: cannot be written .*File too large"):
            write_shard(tmp_path / "x", vectors, toy_pieces(200), "bfloat16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    write_shard(tmp_path / "x", vectors, toy_pieces(200), "bfloat16")
    assert (tmp_path / "x" / "vectors.npy").stat().st_size > 3000


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match="file: is a file; give a folder"):
        write_new(tmp_path / "file")
    with pytest.raises(ClaraError, match="cannot be written .*Not a directory"):
        write_new(tmp_path / "file" / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(ClaraError, match="other: holds other files and no store"):
        write_new(tmp_path / "other")
    for action in (write_added, write_replaced):
        with pytest.raises(ClaraError, match="none: is no store yet.*leave out --"):
            action(tmp_path / "none")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "other"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": {"files": ["a", "c"]}}, r'corpus.files .was \["a", "b"\], now'),
        ({"corpus": {"files": ["a", "b"], "x": 1}}, "corpus.x .was null, now 1"),
        ({"shards": 4}, "shards .was 3, now 4"),
        ({"settings": toy_settings("int8")}, 'dtype .was "bfloat16", now "int8"'),
        ({"settings": toy_settings(fingerprint="f2")}, 'fingerprint .was "f1", now'),
        ({"settings": toy_settings(compute="float32")}, "settings.compute"),
    ],
)
def test_another_job_is_under_way(tmp_path, changes, said):
    path = tmp_path / "s"
    job = {"settings": toy_settings(), "shards": 3, "corpus": {"files": ["a", "b"]}}
    with Job.begin(path, **job) as begun:
        begun.write(0, toy_vectors(1), toy_pieces(1))
    before = tree(path)
    with pytest.raises(ClaraError, match=f"s: another job.*{said}.*remove the folder"):
        Job.begin(path, **{**job, **changes})
    assert tree(path) == before
    # The same goes on, also where the model is called otherwise.
    job["settings"] = toy_settings(model="/elsewhere/model")
    with Job.begin(path, **job) as begun:
        assert begun.missing() == [1, 2]


def test_the_first_name_of_the_model_is_kept(tmp_path):
    with Job.begin(tmp_path / "s", toy_settings(), 0, {}):
        pass
    with Job.begin(tmp_path / "s", toy_settings(model="/elsewhere"), 0, {}) as job:
        store = job.commit()
    assert store.manifest.model == "../model"


def test_a_finished_job_is_not_done_again(tmp_path):
    path = tmp_path / "s"
    write_new(path)
    before = tree(path)
    with Job.begin(path, toy_settings(), 3, {"name": "d"}) as job:
        assert job.finished
        assert job.missing() == []
        assert len(job.commit()) == 9
    assert tree(path) == before
    with pytest.raises(ClaraError, match="holds a finished store of other documents"):
        write_new(path, shards=4)
    for action in (write_added, write_replaced):
        action(path)
        before = tree(path)
        action(path)
        assert tree(path) == before


def test_add(tmp_path):
    path = make_toy(tmp_path / "s").path
    old = Store.open(path)
    store = write_added(path)
    assert (store.rows, len(store), store.generation, store.epoch) == (13, 13, 2, 0)
    assert texts(store)[:7] == texts(old)
    assert texts(store)[7:] == [piece.text for piece in toy_pieces(6, name="a")]
    np.testing.assert_array_equal(store.vectors(range(7)), old.vectors(range(7)))
    assert check(path) == []
    # The store that was opened before goes on as it was.
    assert len(texts(old)) == 7


def test_add_what_is_there(tmp_path):
    path = make_toy(tmp_path / "s").path
    before = (path / "store.json").read_bytes()
    pieces = [*toy_pieces(1, name="n"), Piece("x", "d3", source="more.txt")]

    def add(corpus):
        with Job.begin(path, toy_settings(), 1, corpus, "add") as job:
            job.write(0, toy_vectors(2), pieces)
            return job.commit()

    with pytest.raises(ClaraError, match="already.*'d3' .from d.jsonl:4.; .*--replace"):
        add({"try": 1})
    assert (path / "store.json").read_bytes() == before
    assert len(Store.open(path)) == 7
    # Given up and another job begun, nothing of the first one is left.
    (path / "job.json").unlink()
    pieces[1] = Piece("y", "d33")
    store = add({"try": 2})
    assert texts(store)[-2:] == ["text 0 of n", "y"]
    assert check(path) == []
    # What was deleted may come again.
    delete(path, ["d33"])
    pieces[:] = [Piece("z", "d33"), Piece("w", "w")]
    assert texts(add({"try": 3}))[-2:] == ["z", "w"]


def test_replace(tmp_path):
    path = make_toy(tmp_path / "s", 8).path
    store = write_replaced(path)
    assert (store.rows, len(store), store.generation) == (14, 8, 2)
    assert store.deleted.tolist() == [0, 1, 2, 3, 4, 5]
    assert texts(store)[:2] == ["text 6 of d", "text 7 of d"]
    assert texts(store)[2:] == [f"other {i} of d" for i in range(6)]
    assert store.find(["text 2 of d", "other 2 of d"]).tolist() == [-1, 10]
    assert store.rows_of("d2").tolist() == [10]
    assert check(path) == []
    # And again: those deleted before stay deleted, the files of old are gone.
    with Job.begin(path, toy_settings(), 1, {"again": 1}, "replace") as job:
        job.write(0, toy_vectors(2), [Piece("third", "d2"), Piece("new", "n")])
        store = job.commit()
    assert store.deleted.tolist() == [0, 1, 2, 3, 4, 5, 10]
    assert [p.name for p in path.glob("deleted*")] == ["deleted-000003.npy"]
    assert check(path) == []


def test_pieces_without_id_are_never_replaced(tmp_path):
    pieces = [Piece("a"), Piece("b"), Piece("c", "c")]
    path = write_store(tmp_path / "s", toy_settings(), toy_vectors(3), pieces).path
    with Job.begin(path, toy_settings(), 1, {}, "replace") as job:
        job.write(0, toy_vectors(2), [Piece("a"), Piece("d", "c")])
        assert texts(job.commit()) == ["a", "b", "a", "d"]


def test_one_id_for_two_documents(tmp_path):
    def write(pieces, name):
        write_store(tmp_path / name, toy_settings(), toy_vectors(4), pieces, 2)

    parts = [Piece(f"{i}", "x", part=i + 1, parts=4) for i in range(4)]
    write(parts, "parts")
    twice = [*toy_pieces(2), Piece("a", "d1", source="e.txt"), Piece("b", "y")]
    with pytest.raises(
        ClaraError, match="two documents.*'d1' .from d.jsonl:2 and from e.txt.; give"
    ):
        write(twice, "twice")
    assert not (tmp_path / "twice" / "store.json").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            toy_settings(fingerprint="f2"),
            "model, with another fingerprint .was f1, now",
        ),
        (toy_settings("int4"), "dtype .was bfloat16, now int4"),
        (toy_settings(width=8), "width .was 6, now 8"),
        (
            toy_settings(memory=type(toy_settings().memory)(64, 32)),
            "memory .was .*32.*64",
        ),
    ],
)
def test_add_to_a_store_of_another_kind(tmp_path, settings, said):
    path = make_toy(tmp_path / "s").path
    before = tree(path)
    with pytest.raises(ClaraError, match=f"s: was made with another {said}"):
        Job.begin(path, settings, 1, {}, "add")
    assert tree(path) == before


def test_two_writers_of_one_part(tmp_path):
    path = tmp_path / "s"
    busy = start("write_new", path, part=1, parts=2, hold_at=15, shards=4)
    try:
        with pytest.raises(
            ClaraError, match="s: another process is writing part 2 of 2"
        ):
            write_new(path, 1, 2, 4)
        with pytest.raises(
            ClaraError, match="shares this store out in 2 parts, this one"
        ):
            write_new(path, 0, 3, 4)
        with pytest.raises(ClaraError, match="s: is not finished"):
            delete(path, ["d1"])
        # The other part may be written meanwhile.
        assert write_new(path, 0, 2, 4) is None
    finally:
        busy.kill()
        assert busy.wait() == -signal.SIGKILL
    assert len(write_new(path, 1, 2, 4)) == 12
    write_new(tmp_path / "whole", shards=4)
    assert tree(path) == tree(tmp_path / "whole")


def test_no_such_part(tmp_path):
    with Job.begin(tmp_path / "s", toy_settings(), 1, {}) as job:
        for part in (-1, 2):
            with pytest.raises(ClaraError, match=f"no part {part + 1} of 2"):
                job.missing(part, 2)
    with pytest.raises(ClaraError, match="no mode 'other'; give one of new, add"):
        check_folder(tmp_path, "other")


def test_a_shard_note_that_is_damaged(tmp_path):
    path = tmp_path / "s"
    with Job.begin(path, toy_settings(), 2, {}) as job:
        job.write(0, toy_vectors(1), toy_pieces(1))
    note = path / "shards" / "000001-000000" / "shard.json"
    note.write_text(json.dumps({"rows": 1}))
    with (
        pytest.raises(
            ClaraError, match="shard.json: is damaged; remove .*000001-000000"
        ),
        Job.begin(path, toy_settings(), 2, {}) as job,
    ):
        job.missing()


def test_without_locks(tmp_path, monkeypatch):
    """As on Windows, and on file systems that have none."""
    monkeypatch.setattr("clara_jax.search.locks.fcntl", None)
    write_new(tmp_path / "a")
    monkeypatch.undo()

    def none(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("clara_jax.search.locks.fcntl.flock", none)
    write_new(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
