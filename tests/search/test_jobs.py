import json
import signal

import numpy as np
import pytest
from toy_store import (
    SHARD,
    make_toy,
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
from clara_jax.search import Job, Store, check, compact, delete, manifest
from clara_jax.search.manifest import hold_store


def texts(store):
    rows = np.flatnonzero(store.live)
    return [piece.text for piece in store.pieces(rows)]


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
        with pytest.raises(ClaraError, match="none: is not a store yet.*leave out --"):
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
    pieces = [*toy_pieces(1, name="n"), Document("x", "d3", source="more.txt")]

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
    pieces[1] = Document("y", "d33")
    store = add({"try": 2})
    assert texts(store)[-2:] == ["text 0 of n", "y"]
    assert check(path) == []
    # What was deleted may come again.
    delete(path, ["d33"])
    pieces[:] = [Document("z", "d33"), Document("w", "w")]
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
        job.write(0, toy_vectors(2), [Document("third", "d2"), Document("new", "n")])
        store = job.commit()
    assert store.deleted.tolist() == [0, 1, 2, 3, 4, 5, 10]
    assert [p.name for p in path.glob("deleted*")] == ["deleted-000003.npy"]
    assert check(path) == []


def test_pieces_without_id_are_never_replaced(tmp_path):
    pieces = [Document("a"), Document("b"), Document("c", "c")]
    path = write_store(tmp_path / "s", toy_settings(), toy_vectors(3), pieces).path
    with Job.begin(path, toy_settings(), 1, {}, "replace") as job:
        job.write(0, toy_vectors(2), [Document("a"), Document("d", "c")])
        assert texts(job.commit()) == ["a", "b", "a", "d"]


def test_one_id_for_two_documents(tmp_path):
    def write(pieces, name):
        write_store(tmp_path / name, toy_settings(), toy_vectors(4), pieces, 2)

    parts = [Document(f"{i}", "x", part=i + 1, parts=4) for i in range(4)]
    write(parts, "parts")
    twice = [*toy_pieces(2), Document("a", "d1", source="e.txt"), Document("b", "y")]
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
            'fingerprint .was "f1", now "f2"',
        ),
        (toy_settings("int4"), 'dtype .was "bfloat16", now "int4"'),
        (toy_settings(width=8), "width .was 6, now 8"),
        (
            toy_settings(memory=type(toy_settings().memory)(64, 32)),
            "memory.compression_rate .was 16, now 32.*, memory.doc_max",
        ),
    ],
)
def test_add_to_a_store_of_another_kind(tmp_path, settings, said):
    path = make_toy(tmp_path / "s").path
    before = tree(path)
    with pytest.raises(ClaraError, match=f"s: was made with another model .*{said}"):
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


def test_a_job_that_another_part_has_finished_is_not_committed_twice(
    tmp_path, monkeypatch
):
    path = make_toy(tmp_path / "s").path
    vectors, pieces = toy_vectors(2 * SHARD, seed=5), toy_pieces(2 * SHARD)
    jobs = [
        Job.begin(path, toy_settings(), 2, {"name": "d"}, "replace") for _ in range(2)
    ]
    for k, job in enumerate(jobs):
        job.missing(k, 2)
        job.write(k, vectors[k * SHARD :][:SHARD], pieces[k * SHARD :][:SHARD])
    monkeypatch.setattr(manifest, "PATIENCE", 0.1)
    begun = hold_store(path)  # the other part is committing
    with pytest.raises(ClaraError, match="another process is .* beginning to write"):
        jobs[0].commit()
    begun.release()
    first = jobs[0].commit()
    rows = first.rows
    assert jobs[1].commit().rows == rows == Store.open(path).rows
    assert check(path) == []


def test_a_job_that_others_have_ended_does_not_undo_what_came_after(tmp_path):
    path = tmp_path / "s"
    late = Job.begin(path, toy_settings(), 2, {"name": "d"})
    write_new(path, shards=2)
    delete(path, ["d1"])
    compact(path)
    before = tree(path)
    for k in late.missing():
        late.write(k, toy_vectors(SHARD), toy_pieces(SHARD, name=f"n{k}-"))
    with pytest.raises(ClaraError, match="s: the job was ended .*; start the command"):
        late.commit()
    late.close()
    assert before.items() <= tree(path).items()
    delete(path, ["d2"])
    assert check(path) == []


def test_a_job_whose_center_was_changed_is_refused(tmp_path):
    settings = toy_settings("int8", center="")
    Job.begin(tmp_path / "s", settings, 1, {"name": "d"}).close()
    file = tmp_path / "s" / "job.json"
    values = json.loads(file.read_text())
    values["settings"]["center"] = "AAAA"
    file.write_text(json.dumps(values))
    with pytest.raises(ClaraError, match=r"job.json: is damaged .*; remove it"):
        Job.begin(tmp_path / "s", settings, 1, {"name": "d"})


def test_a_job_is_given_up_only_if_nothing_was_written(tmp_path):
    job = Job.begin(tmp_path / "s", toy_settings(), 2, {"name": "d"})
    job.missing()
    job.write(1, toy_vectors(1), toy_pieces(1))
    job.abandon()
    assert (tmp_path / "s" / "job.json").exists()
    job.close()
    other = Job.begin(tmp_path / "t", toy_settings(), 2, {"name": "d"})
    other.abandon()
    other.close()
    assert not (tmp_path / "t" / "job.json").exists()


def test_compaction_does_not_give_damage_a_checksum(tmp_path):
    path = make_toy(tmp_path / "s").path
    delete(path, ["d1"])
    file = sorted((path / "shards").iterdir())[0] / "vectors.npy"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[-1] ^= 64
    file.write_bytes(data.tobytes())
    with pytest.raises(ClaraError, match="vectors.npy: is damaged .*nothing was comp"):
        compact(path)
    assert any("vectors.npy" in finding for finding in check(path))
