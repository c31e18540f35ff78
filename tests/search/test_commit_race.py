"""What a reader tried to break: commits at one moment, damage that is written anew."""

import json

import numpy as np
import pytest
from toy_store import SHARD, make_toy, toy_pieces, toy_settings, toy_vectors

from clara_jax.errors import ClaraError
from clara_jax.search import Job, Store, check, compact, delete
from clara_jax.search.locks import hold_begin


def test_a_job_that_another_part_has_finished_is_not_committed_twice(tmp_path):
    path = make_toy(tmp_path / "s").path
    vectors, pieces = toy_vectors(2 * SHARD, seed=5), toy_pieces(2 * SHARD)
    jobs = [
        Job.begin(path, toy_settings(), 2, {"name": "d"}, "replace") for _ in range(2)
    ]
    for k, job in enumerate(jobs):
        job.missing(k, 2)
        job.write(k, vectors[k * SHARD :][:SHARD], pieces[k * SHARD :][:SHARD])
    begun = hold_begin(path)  # the other part is committing
    with pytest.raises(ClaraError, match="another process is beginning to write"):
        jobs[0].commit()
    begun.release()
    first = jobs[0].commit()
    rows = first.rows
    assert jobs[1].commit().rows == rows == Store.open(path).rows
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
