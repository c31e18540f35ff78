"""Real processes: killed at bad moments, told to stop, side by side."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from clara_jax.errors import ClaraError
from clara_jax.search import Store, check
from clara_jax.search.scann_index import open_searcher
from tests.compress.command_line import job_files, shards

SHARDS = 8
PATIENCE = 900
"""Seconds after which a process that does not get on fails the test."""


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("jit")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def command(model, corpus):
    """The command for a store; all stores of it must come out the same."""

    def make(store, *more, files=corpus):
        given = ("--model", model, "--corpus", files, "--store", store)
        return line(*given, "--shard-size", 3, "--batch-size", 8, *more)

    return make


def line(*words):
    return [str(w) for w in (sys.executable, "-m", "clara_jax.compress", *words)]


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory):
    """A finished store; copy it before changing it."""
    store = tmp_path_factory.mktemp("reference") / "store"
    finish(command(store))
    assert check(store) == []
    assert len(Store.open(store).dataset.get_fragments()) >= SHARDS
    return store


@pytest.fixture(scope="module")
def changed(corpus, tmp_path_factory):
    """Documents that the store has, with other texts, and documents that it lacks."""
    folder = tmp_path_factory.mktemp("changed")
    old = (corpus / "lines.jsonl").read_text().splitlines()[:12]
    texts = [{**json.loads(text), "text": "Edo Falk"} for text in old]
    (folder / "replace.jsonl").write_text("\n".join(map(json.dumps, texts)))
    texts = [{**text, "id": f"new{i}", "team": "law"} for i, text in enumerate(texts)]
    (folder / "add.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


def start(line):
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(line):
    done = subprocess.run(line, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done


def until(process, happened):
    """Wait for a moment in a process's work; whether it came before the end."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < end
        time.sleep(0.0005)
    return False


def killed(line, moment, delay):
    """Kill a process some seconds after a moment; whether it had not yet ended."""
    process = start(line)
    if until(process, moment):
        time.sleep(delay)
        process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def damage(store):
    """What a check finds, besides that a job is not finished."""
    return [found for found in check(store) if "still being put in" not in found]


def moments(store):
    """Moments of a job, each with a random delay after it, in seconds."""
    draw = random.Random(0)
    files = len(list(store.glob("data/*")))
    later = [
        lambda: job_files(store, "job.json"),
        lambda: len(list(store.glob("data/*"))) > files,
        lambda: len(shards(store)) >= 2,
        lambda: len(shards(store)) >= 3,
        lambda: not job_files(store, "job.json") and (store / "_versions").exists(),
    ]
    return [(moment, draw.uniform(0, 0.03)) for moment in later]


@pytest.mark.slow
def test_killed_again_and_again_a_new_store_is_the_same(
    command, reference, tmp_path, content_of
):
    store = tmp_path / "store"
    kills, before = 0, set()
    for moment, delay in moments(store)[:-1]:
        kills += killed(command(store), moment, delay)
        try:
            assert content_of(store)[:2] == content_of(reference)[:2]
        except ClaraError as error:
            assert "is not finished" in str(error)
            assert {*shards(store)} >= before, "a whole shard was lost"
            before = {*shards(store)}
    assert kills >= 1
    finish(command(store))
    assert content_of(store) == content_of(reference)
    assert check(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_killed_while_documents_are_put_in_it_has_all_or_none_of_them(
    command, reference, changed, tmp_path, content_of, mode
):
    how = {"files": changed / f"{mode}.jsonl"}
    whole = shutil.copytree(reference, tmp_path / "whole")
    finish(command(whole, f"--{mode}", **how))
    store = shutil.copytree(reference, tmp_path / "store")
    rows = len(Store.open(reference))
    kills = 0
    for moment, delay in moments(store)[:-1]:
        kills += killed(command(store, f"--{mode}", **how), moment, delay)
        assert damage(store) == []
        opened = Store.open(store)
        pieces = opened.pieces(opened.ids)
        new = [piece for piece in pieces if piece.text == "Ada Bell\nEdo Falk"]
        assert len(new) in (0, 12)
        if mode == "add" or not new:
            assert len(opened) == rows + len(new)
    assert kills >= 1
    finish(command(store, f"--{mode}", **how))
    assert content_of(store) == content_of(whole)
    assert check(store) == []


@pytest.mark.slow
def test_killed_while_an_index_is_built_it_is_as_before(reference, tmp_path):
    store = shutil.copytree(reference, tmp_path / "store")
    index = line("index", "--store", store, "--no-report")
    opened, draw, kills = Store.open(store), random.Random(0), 0
    queries = opened.vectors(opened.ids[:3]).reshape(3, -1)
    for number in range(10):
        if kills == 3:
            break
        process = start(index)
        assert process.stderr.readline()  # the first of its steps
        time.sleep(draw.uniform(0, 0.4 / 2**number))
        process.kill()
        process.communicate(timeout=PATIENCE)
        kills += process.returncode == -signal.SIGKILL
        assert check(store) == []
        after = Store.open(store)
        assert after.pieces(after.ids) == opened.pieces(opened.ids)
        _, found = open_searcher(after, "auto")(queries, 1)
        assert found[:, 0].tolist() == opened.ids[:3].tolist()
    assert kills >= 1
    finish(index)
    _, found = open_searcher(Store.open(store), "scann")(queries, 1)
    assert found[:, 0].tolist() == opened.ids[:3].tolist()
    assert check(store) == []


@pytest.mark.slow
def test_two_processes_write_one_store(command, reference, tmp_path, content_of):
    store = tmp_path / "store"
    first = start(command(store, "--part", "1/2"))
    assert until(first, lambda: shards(store))
    os.kill(first.pid, signal.SIGSTOP)
    # Another one of the same part writes what the first does, and does no harm.
    same = finish(command(store, "--part", "1/2"))
    assert b"part 1 of 2 is written" in same.stdout
    second = start(command(store, "--part", "2/2"))
    assert until(second, lambda: "000001.json" in shards(store))
    os.kill(first.pid, signal.SIGCONT)
    ends = [process.communicate(timeout=PATIENCE) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), ends
    assert sum(b"next: " in out for out, _ in ends) >= 1  # the last one, or both
    assert content_of(store)[:2] == content_of(reference)[:2]
    assert check(store) == []


@pytest.mark.slow
def test_told_to_stop_it_says_how_to_go_on(command, reference, tmp_path, content_of):
    store = tmp_path / "store"
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        shutil.rmtree(store, ignore_errors=True)
        process = start(command(store))
        assert until(process, lambda: job_files(store, "job.json"))
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == status, err
        last = err.decode().strip().splitlines()[-1]
        assert "start the same command again to go on" in last
    finish(command(store))
    assert content_of(store) == content_of(reference)
