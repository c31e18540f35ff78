"""Jobs whose store others have changed, compacted or made meanwhile."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_store import contents, toy_settings, toy_vectors, write_added, write_new

from clara_jax.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.places import Folder
from clara_jax.search import Job, Store, check, compact, delete, writer
from clara_jax.search.codecs import center_of


def test_two_jobs_that_make_one_store_at_once(tmp_path, monkeypatch):
    path = tmp_path / "s"
    jobs = []
    monkeypatch.setattr(writer, "_refuse_other", lambda *_: None)  # neither saw it
    for name in ("d", "e"):
        jobs.append(Job.begin(path, toy_settings(), 1, {"name": name}))
        jobs[-1].write(0, toy_vectors(2), [Document(name), Document(2 * name)])
    jobs[0].commit()
    before = contents(path)
    with pytest.raises(ClaraError, match="holds a finished store of other documents"):
        jobs[1].commit()
    assert contents(path) == before


def test_a_job_is_finished_after_a_compaction_too(tmp_path):
    path = tmp_path / "s"
    write_new(path)
    write_added(path)
    compact(path)
    write_added(path)  # with documents that have ids, twice would be an error
    before = contents(path)
    delete(path, ["d1"])
    compact(path)
    with pytest.raises(ClaraError, match="already has a document"):
        write_added(path)
    assert len(contents(path)) == len(before) - 1


@pytest.mark.parametrize("lost", ["file", "mean"])
def test_shards_that_no_longer_serve_are_written_anew(tmp_path, lost):
    """As after a compaction, or where two hosts began at one moment."""
    path = tmp_path / "s"
    given = path, toy_settings("int8", center=center_of(toy_vectors(3), "int8")), 2, {}
    job = Job.begin(*given)
    for k in job.missing():
        job.write(k, toy_vectors(2, seed=k), [Document(f"{k}{i}") for i in "ab"])
    (file,) = path.glob("_jobs/*/000001.json")
    note = json.loads(file.read_text())
    if lost == "file":
        (path / "data" / note["fragments"][0]["files"][0]["path"]).unlink()
    else:
        note["layout"]["center"] = ""
        del note["checksum"]
        job._note(file.name, note)
    with pytest.raises(ClaraError, match="1 of the shards no longer serve; start the"):
        job.commit()
    again = Job.begin(*given)
    assert again.missing() == [1]
    again.write(1, toy_vectors(2, seed=1), [Document(f"1{i}") for i in "ab"])
    assert len(again.commit()) == 4 and check(path) == []


def test_hosts_that_add_one_new_field_at_once(tmp_path):
    path = tmp_path / "s"
    write_new(path)
    given = (
        path,
        toy_settings(),
        4,
        {"name": "x"},
        "add",
        {"number": "int", "new": "int"},
    )
    jobs = [Job.begin(*given) for _ in range(4)]

    def write(k):
        piece = Document(f"x{k}", f"x{k}", metadata={"new": k})
        jobs[k].write(k, toy_vectors(1, seed=k), [piece])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert len(jobs[0].commit()) == 13
    assert sorted(Store.open(path).where("new >= 0").tolist()) == [9, 10, 11, 12]


def test_a_file_that_is_missing_is_not_other_processes_work(tmp_path):
    path = tmp_path / "s"
    write_new(path)
    for file in path.glob("data/*"):
        file.unlink()
    with pytest.raises(ClaraError, match="is not whole, or not there"):
        delete(path, ["d1"])


def test_killed_before_its_notes_were_removed_a_job_is_finished(tmp_path, monkeypatch):
    """Also where the history was compacted since."""
    path = tmp_path / "s"
    write_new(path)
    pieces = [Document("without an id")]
    given = path, toy_settings(), 1, {"name": "x"}, "add"
    job = Job.begin(*given)
    job.write(0, toy_vectors(1), pieces)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", lambda *_: None)
        job.commit()
    compact(path)
    again = Job.begin(*given)
    assert again.finished or again.missing() == []
    assert len(again.commit()) == len(contents(path)) == 10
    assert not list(path.glob("_jobs/*"))
