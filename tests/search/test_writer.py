import errno
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
    write_store,
)

from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Job, Store, check
from clara_jax.search.codecs import decode, encode


def texts(store):
    rows = np.flatnonzero(store.live)
    return [piece.text for piece in store.pieces(rows)]


@pytest.mark.parametrize("dtype", CODECS)
def test_a_shard(tmp_path, dtype):
    vectors, pieces = toy_vectors(4), toy_pieces(4)
    store = write_store(tmp_path / "s", toy_settings(dtype), vectors, pieces)
    (info,) = store.manifest.shards
    assert (info.name, info.rows) == ("000001-000000", 4)
    folder = store.path / "shards" / info.name
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files == info.sizes
    codes, scales = encode(vectors, dtype, store.center)
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), codes)
    if scales is not None:
        np.testing.assert_array_equal(np.load(folder / "scales.npy"), scales)
    decoded = decode(codes, scales, dtype, 6, center=store.center)
    norms = np.linalg.norm(decoded, axis=(1, 2))
    np.testing.assert_allclose(np.load(folder / "norms.npy"), norms, rtol=1e-6)


def test_memory_layout_does_not_matter(tmp_path):
    vectors, pieces = toy_vectors(4), toy_pieces(4)
    write_store(tmp_path / "a", toy_settings(), vectors, pieces)
    write_store(tmp_path / "b", toy_settings(), np.asfortranarray(vectors), pieces)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_vectors_and_pieces_of_one_number(tmp_path):
    with Job.begin(tmp_path / "s", toy_settings(), 1, {}) as job:
        with pytest.raises(ClaraError, match=r"was given \(3, 2, 6\) for 2 pieces"):
            job.write(0, toy_vectors(3), toy_pieces(2))
        with pytest.raises(ClaraError, match=r"2 vectors of width 6.*\(1, 2, 5\)"):
            job.write(0, toy_vectors(1, width=5), toy_pieces(1))
        with pytest.raises(ClaraError, match=r"was given \(1, 3, 6\)"):
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
    empty = store.path / "shards" / "000001-000001" / "vectors.npy"
    assert np.load(empty).shape == (0, 2, 3)
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
    # Parts may be more than shards.
    assert write_new(tmp_path / "four", 7, 9, 5) is None
    assert len(write_new(tmp_path / "four", 0, 1, 5)) == 15
    for other in ("two", "three", "four"):
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
    given = (tmp_path / "s", toy_settings(), toy_vectors(200), toy_pieces(200))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(ClaraError, match="0: cannot be written .*File too large"):
            write_store(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [name for name in tree(tmp_path) if "shards/" in name] == []
    assert len(write_store(*given)) == 200


def test_without_locks(tmp_path, monkeypatch):
    """As on Windows, and on file systems that have none."""
    monkeypatch.setattr("clara_jax.search.manifest.fcntl", None)
    write_new(tmp_path / "a")
    monkeypatch.undo()

    def none(*arguments):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr("clara_jax.search.manifest.fcntl.flock", none)
    write_new(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
