"""Checkpoints where Orbax takes every folder for one of a bucket (gcsfuse)."""

import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.checkpoint import load_tree, replace_folder, write_tree
from clara_jax.train.checkpoints import Checkpoints

DETECTION = "orbax.checkpoint._src.path.gcs_utils.is_gcs_path"


def arrays(value):
    return {"a": jnp.full((8, 4), float(value)), "step": jnp.int32(value)}


def save(folder, *steps):
    checkpoints = Checkpoints(folder, keep=2)
    for step in steps:
        checkpoints.save(step, arrays(step), {"step": step})
    checkpoints.close()


def newest(folder, *then):
    """Return the newest step, and save others afterwards, as a resumed run does."""
    checkpoints = Checkpoints(folder, keep=2)
    found = checkpoints.restore_newest(arrays(0))
    for step in then:
        checkpoints.save(step, arrays(step), {"step": step})
    checkpoints.close()
    assert found is not None
    step, read, extra = found
    np.testing.assert_array_equal(read["a"], arrays(step)["a"])
    assert extra == {"step": step}
    return step


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return a folder, and a function that mounts or unmounts the bucket."""

    def mount(on=True):
        monkeypatch.setattr(DETECTION, lambda path: on)

    return tmp_path, mount


def test_saves_prunes_and_goes_on(bucket):
    folder, mount = bucket
    mount()
    save(folder, 1, 2, 3)
    assert names(folder) == ["2", "3"]
    assert newest(folder, 4) == 3
    assert names(folder) == ["3", "4"] and newest(folder) == 4


def unmark(folder):
    """Leave what versions of Orbax before 0.12.3 wrote."""
    for mark in folder.rglob("commit_success.txt"):
        mark.unlink()


def test_copied_to_a_bucket_and_back(bucket):
    folder, mount = bucket
    save(folder, 1, 2)
    unmark(folder)
    mount()
    assert newest(folder, 3) == 2
    mount(False)
    assert names(folder) == ["2", "3"] and newest(folder) == 3


def test_trees_copied_to_a_bucket(bucket):
    folder, mount = bucket
    write_tree(folder / "new", {"x": np.arange(3)})
    unmark(folder)
    mount()
    replace_folder(folder / "new", folder / "tree")
    np.testing.assert_array_equal(load_tree(folder / "tree")["x"], np.arange(3))
    write_tree(folder / "new", {"x": np.ones(3)})
    replace_folder(folder / "new", folder / "tree")
    np.testing.assert_array_equal(load_tree(folder / "tree")["x"], np.ones(3))
    assert names(folder) == ["tree"]


KILLED = f"""
import os, signal, sys
from unittest import mock
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_mounted_bucket as this
from orbax.checkpoint._src.path import atomicity

async def die(self):
    os.kill(os.getpid(), signal.SIGKILL)

with mock.patch(this.DETECTION, lambda path: True):
    this.save(Path(sys.argv[1]), 1, 2)
    atomicity.AtomicRenameTemporaryPath.finalize = die
    atomicity.CommitFileTemporaryPath.finalize = die
    this.save(Path(sys.argv[1]), 3)
"""


def test_killed_in_the_middle_of_a_save(bucket):
    folder, mount = bucket
    run = subprocess.run([sys.executable, "-c", KILLED, folder], capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert [n for n in names(folder) if n.isdigit()] == ["1", "2"]
    assert len(names(folder)) == 3  # and half of the third
    mount()
    assert newest(folder, 3) == 2
    assert names(folder) == ["2", "3"] and newest(folder) == 3
