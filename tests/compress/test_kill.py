"""Real processes: killed at bad moments, told to stop, side by side."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from clara_jax.search import Store, check

SHARDS = 8
PATIENCE = 900
"""Seconds after which a process that does not get on fails the test."""


@pytest.fixture(scope="module")
def command(model, corpus, tmp_path_factory):
    """The command for a store; all stores of it must come out the same."""

    def make(store, *more):
        given = ("--model", model, "--corpus", corpus, "--store", store)
        sizes = ("--shard-size", 3, "--batch-size", 8)
        line = [sys.executable, "-m", "clara_jax.compress", *given, *sizes, *more]
        return [str(word) for word in line]

    return make


@pytest.fixture(scope="module")
def expected(command, tmp_path_factory, bytes_of):
    store = tmp_path_factory.mktemp("reference") / "store"
    subprocess.run(command(store), check=True, capture_output=True, timeout=PATIENCE)
    assert check(store) == []
    assert len(Store.open(store).manifest.shards) >= SHARDS
    return bytes_of(store)


def start(line):
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(process, happened):
    """Wait for a moment in a process's work; whether it came before the end."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < end
        time.sleep(0.0005)
    return False


def shards(store, pattern="[!.]*"):
    return {path.name for path in (store / "shards").glob(pattern)}


@pytest.mark.slow
def test_killed_again_and_again_the_store_is_the_same(
    command, expected, tmp_path, bytes_of
):
    store = tmp_path / "store"
    moments = [
        lambda: (store / "job.json").exists(),
        lambda: shards(store, ".*"),  # a shard is half written
        lambda: len(shards(store)) >= 2,
        lambda: len(shards(store)) >= 3 and shards(store, ".*"),
        lambda: len(shards(store)) >= 5,
        lambda: len(shards(store)) >= SHARDS - 1,
        lambda: (store / "store.json").exists(),
    ]
    kills, before = 0, set()
    for moment in moments:
        process = start(command(store))
        if until(process, moment):
            process.kill()
            kills += 1
        process.communicate(timeout=PATIENCE)
        assert process.returncode in (0, -signal.SIGKILL)
        assert shards(store) >= before, "a whole shard was lost"
        before = shards(store)
    assert kills >= 3
    last = subprocess.run(command(store), capture_output=True, timeout=PATIENCE)
    assert last.returncode == 0, last.stderr
    assert bytes_of(store) == expected
    assert check(store) == []


@pytest.mark.slow
def test_two_processes_write_one_store_and_a_third_is_kept_out(
    command, expected, tmp_path, bytes_of
):
    store = tmp_path / "store"
    first = start(command(store, "--part", "1/2"))
    assert until(first, lambda: (store / "job.json").exists() and shards(store))
    os.kill(first.pid, signal.SIGSTOP)
    same = subprocess.run(
        command(store, "--part", "1/2"), capture_output=True, timeout=PATIENCE
    )
    assert same.returncode == 1
    assert b"another process is writing part 1 of 2" in same.stderr.splitlines()[-1]
    all_of_it = subprocess.run(command(store), capture_output=True, timeout=PATIENCE)
    assert all_of_it.returncode == 1
    assert b"shares this store out in 2 parts" in all_of_it.stderr.splitlines()[-1]
    edit = [sys.executable, "-m", "clara_jax.compress", "--store", str(store)]
    kept_out = subprocess.run(
        [*edit, "--delete", "d0"], capture_output=True, timeout=PATIENCE
    )
    assert kept_out.returncode == 1 and kept_out.stderr.count(b"\n") == 1
    second = start(command(store, "--part", "2/2"))
    os.kill(first.pid, signal.SIGCONT)
    ends = [process.communicate(timeout=PATIENCE) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), ends
    assert sum(b"next: " in out for out, _ in ends) >= 1  # the last one, or both
    assert bytes_of(store) == expected


@pytest.mark.slow
def test_told_to_stop_it_says_how_to_go_on(command, expected, tmp_path, bytes_of):
    store = tmp_path / "store"
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        shutil.rmtree(store, ignore_errors=True)
        process = start(command(store))
        assert until(process, lambda: (store / "job.json").exists())
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, err
        last = err.decode().strip().splitlines()[-1]
        assert "start the same command again to go on" in last
    subprocess.run(command(store), check=True, capture_output=True, timeout=PATIENCE)
    assert bytes_of(store) == expected
