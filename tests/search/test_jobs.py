import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from lance import LanceDataset
from lance.commit import CommitConflictError
from toy_store import (
    SHARD,
    contents,
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
from clara_jax.search import Job, Store, check, compact, delete


def texts(place):
    return [piece.text for _, piece, _ in contents(place)]


def add(place, pieces, name="more", mode="add"):
    job = Job.begin(place, toy_settings(), 1, {"name": name}, mode)
    job.write(0, toy_vectors(len(pieces)), pieces)
    return job.commit()


def test_places_that_cannot_be_written(tmp_path):
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
    job["fields"] = {"number": "int"}
    begun = Job.begin(path, **job)
    begun.write(0, toy_vectors(1), toy_pieces(1))
    before = tree(path)
    with pytest.raises(ClaraError, match=f"s: another job.*{said}.*remove _jobs/"):
        Job.begin(path, **{**job, **changes})
    assert tree(path) == before
    # The same goes on, also where the model is called otherwise.
    job["settings"] = toy_settings(model="/elsewhere/model")
    assert Job.begin(path, **job).missing() == [1, 2]


def test_the_first_name_of_the_model_is_kept(tmp_path):
    Job.begin(tmp_path / "s", toy_settings(), 0, {})
    job = Job.begin(tmp_path / "s", toy_settings(model="/elsewhere"), 0, {})
    store = job.commit()
    assert store.settings.model == "../model"


def test_a_finished_job_is_not_done_again(tmp_path):
    path = tmp_path / "s"
    write_new(path)
    before = tree(path)
    job = Job.begin(path, toy_settings(), 3, {"name": "d"})
    assert (job.finished, job.missing()) == (True, [])
    assert len(job.commit()) == 9
    with pytest.raises(ClaraError, match="holds a finished store of other documents"):
        write_new(path, shards=4)
    assert tree(path) == before


def test_additions_again_are_finished(tmp_path):
    path = make_toy(tmp_path / "s").place
    for action in (write_added, write_replaced):
        first = action(path)
        before = tree(tmp_path)
        assert action(path).version == first.version
        assert tree(tmp_path) == before


def test_what_was_deleted_since_can_be_added_by_the_same_command(tmp_path):
    path = make_toy(tmp_path / "s").place
    write_added(path)
    delete(path, [f"a{i}" for i in range(6)])
    write_added(path)
    assert texts(path)[7:] == [f"text {i} of a" for i in range(6)]


def test_add(tmp_path):
    old = make_toy(tmp_path / "s")
    before = contents(old.place)
    store = write_added(old.place)
    assert (store.ids.tolist(), store.version) == ([*range(13)], 2)
    assert contents(store.place)[:7] == before
    assert texts(store.place)[7:] == [f"text {i} of a" for i in range(6)]
    assert check(store.place) == []
    # The store that was opened before goes on as it was.
    assert len(old.pieces(old.ids)) == 7


def test_add_what_is_there(tmp_path):
    path = make_toy(tmp_path / "s").place
    before = contents(path)
    pieces = [Document("n", "n"), Document("x", "d3", source="more.txt")]
    with pytest.raises(ClaraError, match="already.*'d3' .from d.jsonl:4.; .*--replace"):
        add(path, pieces)
    assert (contents(path), Store.open(path).version) == (before, 1)
    # The same command goes on saying so; another job is not disturbed by it.
    with pytest.raises(ClaraError, match="already has a document with the id 'd3'"):
        add(path, pieces)
    assert len(add(path, [Document("y", "d33")], "other")) == 8
    (found,) = check(path)
    assert "/job.json: documents are still being put in; finish that" in found
    # Once it is not there any more, it may come.
    delete(path, ["d3"])
    add(path, pieces)
    assert texts(path)[-3:] == ["y", "n", "x"]
    assert check(path) == []


def test_replace(tmp_path):
    path = make_toy(tmp_path / "s", 8).place
    before = contents(path)
    store = write_replaced(path)
    assert store.ids.tolist() == [*range(6, 14)]
    assert contents(path)[:2] == before[6:]
    assert texts(path)[2:] == [f"other {i} of d" for i in range(6)]
    assert store.find(["text 2 of d", "other 2 of d"]).tolist() == [-1, 10]
    assert store.matching(["d2"]).tolist() == [10]
    # And again, with a document that is new.
    add(path, [Document("third", "d2"), Document("new", "n")], mode="replace")
    assert Store.open(path).ids.tolist() == [6, 7, 8, 9, 11, 12, 13, 14, 15]
    assert texts(path)[-2:] == ["third", "new"]
    assert check(path) == []


def test_documents_without_id_are_never_replaced(tmp_path):
    pieces = [Document("a"), Document("b"), Document("c", "c")]
    path = write_store(tmp_path / "s", toy_settings(), toy_vectors(3), pieces).place
    add(path, [Document("a"), Document("d", "c")], mode="replace")
    assert texts(path) == ["a", "b", "a", "d"]


def test_one_id_for_two_documents(tmp_path):
    def write(pieces, name, shard_size=2):
        given = toy_settings(), toy_vectors(len(pieces)), pieces
        return write_store(tmp_path / name, *given, shard_size)

    parts = [Document(f"{i}", "x", part=i + 1, parts=4) for i in range(4)]
    assert len(write(parts, "parts", 4)) == 4
    one, other = (
        Document("a", "d1", source="a.txt"),
        Document("b", "d1", source="e.txt"),
    )
    said = "two documents.*'d1' .from a.txt and e.txt.; give"
    with pytest.raises(ClaraError, match=said):
        write([one, Document("b", "y"), other], "apart")
    with pytest.raises(ClaraError, match="two documents have the id 'd1' .from a.txt"):
        write([one, other], "together")
    for name in ("apart", "together"):
        with pytest.raises(ClaraError, match="is not finished"):
            Store.open(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (toy_settings(fingerprint="f2"), 'fingerprint .was "f1", now "f2"'),
        (toy_settings("int4"), 'dtype .was "bfloat16", now "int4"'),
        (toy_settings(width=8), "width .was 6, now 8"),
        (
            toy_settings(memory=type(toy_settings().memory)(64, 32)),
            "memory.compression_rate .was 16, now 32.*, memory.doc_max",
        ),
    ],
)
def test_add_to_a_store_of_another_kind(tmp_path, settings, said):
    path = make_toy(tmp_path / "s").place
    before = tree(tmp_path)
    with pytest.raises(ClaraError, match=f"s: was made with another model .*{said}"):
        Job.begin(path, settings, 1, {}, "add")
    assert tree(tmp_path) == before


def test_parts_in_any_order_give_the_same_rows(tmp_path):
    write_new(tmp_path / "one", shards=5)
    expected = contents(tmp_path / "one")
    assert write_new(tmp_path / "two", 1, 2, 5, backwards=True) is None
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
        assert contents(tmp_path / other) == expected


def test_two_processes_write_one_store(tmp_path):
    write_new(tmp_path / "one", shards=8)
    options = [{"part": i, "parts": 2, "backwards": i == 1} for i in range(2)]
    pair = [start("write_new", tmp_path / "two", shards=8, **o) for o in options]
    assert [worker.wait() for worker in pair] == [0, 0]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert check(tmp_path / "two") == []


def test_two_processes_write_the_same_part(tmp_path):
    """The second works while the first stands still, before the commit."""
    path = tmp_path / "s"
    busy = start("write_new", path, hold_at="commit")
    try:
        assert len(write_new(path)) == 9
    finally:
        busy.go()
    assert busy.wait() == 0
    assert len(contents(path)) == 9
    assert check(path) == []


@pytest.mark.parametrize("kill", [False, True])
def test_additions_beside_one_that_stands_still(tmp_path, kill):
    path = tmp_path / "s"
    make_toy(path)
    busy = start("write_added", path, name="b", hold_at="commit")
    try:
        write_added(path)
        delete(path, ["d1"])
        write_replaced(path)
        compact(path)
        before = contents(path)
    finally:
        busy.kill() if kill else busy.go()
        assert busy.wait() == (-signal.SIGKILL if kill else 0)
    if kill:
        assert contents(path) == before
        write_added(path, name="b")
    assert contents(path)[: len(before)] == before
    assert texts(path)[len(before) :] == [f"text {i} of b" for i in range(6)]
    assert check(path) == []


def test_many_add_at_once(tmp_path):
    path = tmp_path / "s"
    make_toy(path)
    workers = [start("write_added", path, name=name) for name in "abce"]
    assert [worker.wait() for worker in workers] == [0] * 4
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write_added, path, name=name) for name in "fghi"]:
            future.result()
    names = [piece.id for _, piece, _ in contents(path)]
    expected = [f"{name}{i}" for name in "abcefghi" for i in range(6)]
    assert sorted(names) == sorted([*(f"d{i}" for i in range(7)), *expected])
    assert check(path) == []


@pytest.mark.parametrize("mode", ["new", "add", "replace"])
def test_two_commits_of_one_job(tmp_path, monkeypatch, mode):
    """Both have looked at the same version; the second one's commit comes too late."""
    path = tmp_path / "s"
    if mode != "new":
        make_toy(path)
    vectors, pieces = toy_vectors(4), [Document(f"t{i}", f"i{i}") for i in range(4)]
    given = path, toy_settings(), 2, {"name": "x"}, mode
    jobs = [Job.begin(*given) for _ in range(2)]
    for k, job in enumerate(jobs):
        job.write(k, vectors[2 * k :][:2], pieces[2 * k :][:2])
    real, met = LanceDataset.commit, []

    def late(*arguments, **options):
        if not met:
            met.append(1)
            jobs[0].commit()
            try:
                return real(*arguments, **options)
            except (CommitConflictError, OSError):
                met.append(2)
                raise
        return real(*arguments, **options)

    monkeypatch.setattr(LanceDataset, "commit", staticmethod(late))
    jobs[1].commit()
    assert met == [1, 2]
    assert texts(path)[-4:] == [piece.text for piece in pieces]
    assert len(contents(path)) == (4 if mode == "new" else 11)
    assert check(path) == []


def test_a_store_that_others_keep_changing(tmp_path, monkeypatch):
    path = make_toy(tmp_path / "s").place

    def busy(*_, **options):
        raise CommitConflictError("taken")

    monkeypatch.setattr(LanceDataset, "commit", staticmethod(busy))
    with pytest.raises(ClaraError, match="keep changing the store; start the command"):
        write_added(path)
    assert len(Store.open(path)) == 7


def test_a_job_that_is_late_does_not_undo_what_came_after(tmp_path):
    path = tmp_path / "s"
    late = Job.begin(path, toy_settings(), 2, {"name": "d"}, fields={"number": "int"})
    write_new(path, shards=2)
    delete(path, ["d1"])
    compact(path)
    before = contents(path)
    for k in late.missing():
        late.write(k, toy_vectors(SHARD), toy_pieces(SHARD, name=f"n{k}-"))
    with pytest.raises(ClaraError, match="has ended the job .*; start the command"):
        late.commit()
    assert contents(path) == before


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"rows": 1}', b"null", b"\xff\xfe"]
)
@pytest.mark.parametrize("name", ["job.json", "000000.json"])
def test_notes_of_a_job_that_are_damaged(tmp_path, name, damage):
    path = tmp_path / "s"
    write_new(path, 0, 2)
    (note,) = path.glob(f"_jobs/*/{name}")
    note.write_bytes(damage)
    with pytest.raises(ClaraError, match=f"{name}: is damaged .*; remove it and start"):
        write_new(path)
    note.unlink()
    write_new(path)
    write_new(tmp_path / "whole")
    assert contents(path) == contents(tmp_path / "whole")


def test_every_byte_of_a_note(tmp_path):
    """Another byte is found, or makes no difference to what is committed."""
    path = tmp_path / "s"
    write_new(path, 0, 2, shards=2)
    (note,) = path.glob("_jobs/*/000000.json")
    data = note.read_bytes()
    given = path, toy_settings(), 2, {"name": "d"}, "new", {"number": "int"}
    job = Job.begin(*given)
    for place in range(len(data)):
        note.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found = job._read(note.name)
        except ClaraError as error:
            assert "is damaged" in str(error)
        else:
            assert found == {**json.loads(data), "checksum": found["checksum"]}


def test_documents_that_are_refused_begin_no_job(tmp_path):
    def refuse(store):
        raise ClaraError(f"not into {store.place}")

    path = tmp_path / "s"
    given = toy_settings(), 1, {"name": "d"}
    job = Job.begin(path, *given, refuse=refuse)  # of a new store nothing is asked
    job.write(0, toy_vectors(1), [Document("a")])
    job.commit()
    before = tree(path)
    with pytest.raises(ClaraError, match="not into"):
        Job.begin(path, *given, "add", refuse=refuse)
    assert tree(path) == before
    job = Job.begin(path, *given, "add")
    with pytest.raises(ClaraError, match="not into"):  # nor does one go on
        Job.begin(path, *given, "add", refuse=refuse)
    job.write(0, toy_vectors(1), [Document("b")])
    assert len(job.commit()) == 2
