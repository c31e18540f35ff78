"""Small stores of made-up vectors, and processes that die while they write one."""

import atexit
import dataclasses
import errno
import functools
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from lance import LanceDataset, LanceFragment
from lance.dataset import DatasetOptimizer

from clara_jax.config import MemoryConfig
from clara_jax.documents import Document, fields_of
from clara_jax.errors import ClaraError
from clara_jax.search import Job, Store, StoreSettings, compact, delete, writer
from clara_jax.search.codecs import center_of

WIDTH = 6
SHARD = 3


def toy_settings(dtype="bfloat16", *, width=WIDTH, fingerprint="f1", **changes):
    memory = MemoryConfig(doc_max_length=32, compression_rate=16)
    changes = {"model": "../model", "base": "", "memory": memory, **changes}
    return StoreSettings(fingerprint=fingerprint, width=width, dtype=dtype, **changes)


def toy_vectors(n, *, seed=0, width=WIDTH, count=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, count, width)).astype(np.float32)


def toy_pieces(n, *, name="d", word="text"):
    return [
        Document(
            text=f"{word} {i} of {name}",
            id=f"{name}{i}",
            title=f"Title {i}",
            source=f"{name}.jsonl:{i + 1}",
            stop=10 + i,
            metadata={"number": i},
        )
        for i in range(n)
    ]


def write_store(path, settings, vectors, documents, shard_size=1024):
    """Write a new store of vectors that are in memory."""
    if not settings.center:
        center = center_of(vectors, settings.dtype)
        settings = dataclasses.replace(settings, center=center)
    shards = -(-len(vectors) // shard_size)
    corpus, fields = {"pieces": len(documents)}, fields_of(documents)
    job = Job.begin(path, settings, shards, corpus, fields=fields)
    for k in job.missing():
        part = slice(k * shard_size, (k + 1) * shard_size)
        job.write(k, vectors[part], documents[part])
    job.commit()
    return Store.open(path)


def make_toy(path, n=7, dtype="bfloat16", **changes):
    vectors = toy_vectors(n, width=changes.get("width", WIDTH))
    return write_store(
        path, toy_settings(dtype, **changes), vectors, toy_pieces(n), SHARD
    )


def tree(path):
    """All that lies in a folder: bytes of files, None for folders."""
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else None
        for p in sorted(path.rglob("*"))
    }


def contents(place, at=None):
    """Id, document and vectors of each row, in the order of the ids."""
    store = Store.open(place, at=at)
    vectors, pieces = store.vectors(store.ids), store.pieces(store.ids)
    norms = store.arrays(store.ids)["norm"]
    np.testing.assert_allclose(
        norms, np.linalg.norm(vectors, axis=(1, 2)), rtol=1e-6, atol=0
    )
    rows = zip(store.ids.tolist(), pieces, vectors, strict=True)
    return [(id, piece, vector.tobytes()) for id, piece, vector in rows]


def without_ids(rows):
    """What `contents` returns, to compare stores that were written in other ways."""
    return sorted((row[1:] for row in rows), key=lambda row: (row[0].id, row[0].part))


def copy_tree(folder, other):
    if folder.exists():
        shutil.copytree(folder, other)
    return other


# What a process can be told to do to a store.


def write_new(path, part=0, parts=1, shards=3, backwards=False):
    return _write(path, "new", "d", part, parts, shards, backwards)


def write_added(path, part=0, parts=1, shards=2, backwards=False, name="a"):
    return _write(path, "add", name, part, parts, shards, backwards)


def write_replaced(path, part=0, parts=1, shards=2, backwards=False):
    """Documents d0 to d5, with other texts and vectors."""
    return _write(path, "replace", "d", part, parts, shards, backwards, "other")


def _write(path, mode, name, part, parts, shards, backwards, word="text"):
    vectors = toy_vectors(shards * SHARD, seed=len(mode))
    pieces = toy_pieces(shards * SHARD, name=name, word=word)
    corpus, fields = {"name": name}, fields_of(pieces)
    job = Job.begin(path, toy_settings(), shards, corpus, mode, fields)
    missing = job.missing(part, parts)
    for k in reversed(missing) if backwards else missing:
        rows = slice(k * SHARD, (k + 1) * SHARD)
        job.write(k, vectors[rows], pieces[rows])
    return job.commit()


def delete_some(path):
    return delete(path, ["d1", "d4", "d5"])


def compact_all(path):
    return compact(path)


ACTIONS = {
    action.__name__: action
    for action in (write_new, write_added, write_replaced, delete_some, compact_all)
}

FILE_STEPS = [
    (os, name) for name in ("fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
]
LANCE_STEPS = [
    (writer, "write_fragments"),
    (LanceDataset, "commit"),
    (LanceDataset, "add_columns"),
    (LanceDataset, "cleanup_old_versions"),
    (LanceFragment, "delete_rows"),
    (DatasetOptimizer, "compact_files"),
]
STEPS = (*FILE_STEPS, *LANCE_STEPS)
"""Calls before and after which a process may be killed, or which fail."""


def before_step(number, act, patch=setattr, steps=STEPS, after=True):
    """Call `act` before the call of that number, counted from 0, or first of a name.

    With `after`, a return from Lance counts like a call.
    """
    met: list[str] = []

    def count(name):
        first = name == number and name not in met
        met.append(name)
        if first or len(met) - 1 == number:
            act()

    def guard(call, both):
        def guarded(*arguments, **options):
            count(call.__name__)
            found = call(*arguments, **options)
            if both:
                count(f"{call.__name__} returns")
            return found

        return guarded

    for owner, name in steps:
        guarded = guard(getattr(owner, name), after and owner is not os)
        if isinstance(inspect.getattr_static(owner, name), staticmethod):
            guarded = staticmethod(guarded)
        patch(owner, name, guarded)


def fails_at(number, action, path, **options):
    """Do something to a store on a disk that is full from one step on.

    Returns:
      Whether that was an error, and whether there was such a step.
    """
    met = []

    def full():
        met.append(number)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        steps = [step for step in STEPS if step[1] not in ("unlink", "rmdir")]
        before_step(number, full, patch.setattr, steps, after=False)
        try:
            action(path, **options)
        except ClaraError as error:
            assert "the disk is full; free space" in str(error)
            assert "\n" not in str(error)
            return True, True
    # Python makes nothing of a folder that cannot be made but is there.
    return False, bool(met)


class Worker:
    """A process that does something to a store; made by `start`."""

    def __init__(self, pid):
        self.pid = pid
        self.status = None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def go(self):
        """Let it go on from where it holds."""
        os.kill(self.pid, signal.SIGUSR1)

    def wait(self):
        """Its exit status, negative for a signal."""
        if self.status is None:
            self.status = _ask({"wait": self.pid})
        return self.status


def start(action, path, *, die_at=None, hold_at=None, **options):
    """Start a process that does something to a store.

    Args:
      action: name of a function above.
      path: the store.
      die_at: number of the step before which it sends itself SIGKILL.
      hold_at: number or name of the step before which it stops until it is told to go
        on; it has got there when this function returns.
      **options: of the action.
    """
    held = path.with_name(f"{path.name}.held")
    order = {"action": action, "path": str(path), "options": options}
    worker = Worker(_ask({**order, "die_at": die_at, "hold_at": hold_at}))
    if hold_at is not None:
        until = time.monotonic() + 60
        while not held.exists():
            assert time.monotonic() < until
            time.sleep(0.002)
        held.unlink()
    return worker


def run(action, path, **options):
    """Do something in another process; returns its exit status."""
    return start(action, path, **options).wait()


@functools.cache
def _server():
    """This file as a process, which has imported everything and forks at once.

    It never uses Lance, whose threads would be lost in a fork, itself.
    """
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "LANCE_LOG": "error"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def stop():
        server.communicate()

    atexit.register(stop)
    return server


def _ask(order):
    server = _server()
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve():
    warnings.filterwarnings("ignore", "lance is not fork-safe")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                status = 1
                try:
                    _obey(**order)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
        print(json.dumps(answer), flush=True)


def _obey(action, path, options, die_at, hold_at):
    path = Path(path)

    def hold():
        path.with_name(f"{path.name}.held").touch()
        signal.sigwait([signal.SIGUSR1])

    if die_at is not None:
        before_step(die_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if hold_at is not None:
        # Of every thread of it, so that the signal waits for `hold`.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        before_step(hold_at, hold, after=False)
    ACTIONS[action](path, **options)


if __name__ == "__main__":
    _serve()
