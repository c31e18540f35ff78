"""Kill commands that change a store at random moments, and look at what is left.

    python tests/bench/kills.py --output DIR [--kills 30]

Each of new, add, replace, delete, compact and index is started on a copy of a store of
toy documents, and killed (SIGKILL) at a random moment after it first wrote something.
Then the store must open and hold what it held before or what it holds afterwards,
``--check`` must find nothing, and the same command must bring it to its end. It prints,
for each, how many kills there were and what was left, and ends with 1 if ever something
else was.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toy_folder import write_toy

from clara_jax.errors import ClaraError
from clara_jax.search import Store, check

DOCUMENTS, WORDS = 120, "Ada Bell was born in Corin Edo Falk studied Gemma Hana".split()
ACTIONS = ("new", "add", "replace", "delete", "compact", "index")


def write_documents(path: Path, name: str, seed: int) -> Path:
    """Write documents of toy words with the ids ``name0``, ``name1``, ..."""
    draw = random.Random(seed)
    lines = [
        {"id": f"{name}{i}", "text": " ".join(draw.choices(WORDS, k=6)), "year": i}
        for i in range(DOCUMENTS)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def command(action: str, folder: Path, store: Path) -> list[str]:
    """Return the words of a command; see `ACTIONS`."""
    files = {"new": "d", "add": "a", "replace": "r"}
    more = {
        "delete": ["--delete", *(f"d{i}" for i in range(0, DOCUMENTS, 3))],
        "compact": ["--compact"],
        "index": ["--no-report", "--words", "--method", "hashing"],
    }.get(action)
    if more is None:
        corpus = folder / f"{files[action]}.jsonl"
        more = ["--model", folder / "model", "--corpus", corpus, "--shard-size", 8]
        more += [] if action == "new" else [f"--{action}"]
    words = [*(["index"] if action == "index" else []), "--store", store, *more]
    return [str(w) for w in (sys.executable, "-m", "clara_jax.compress", *words)]


def content(store: Path) -> dict[str, str] | None:
    """Return texts by id; None where the store is not there, or not finished."""
    try:
        found = Store.open(store)
    except ClaraError:
        return None
    pieces = found.pieces(found.ids)
    found.vectors(found.ids)
    return {piece.id: piece.text for piece in pieces}


def names(store: Path) -> set[Path]:
    """Return all that lies in a store."""
    return set(store.rglob("*"))


class Trial:
    """One action on copies of a store: run whole once, then killed."""

    def __init__(self, action: str, folder: Path, base: Path | None):
        self.action, self.folder, self.base = action, folder, base
        whole = self.copy("whole")
        self.before, begin = content(whole), names(whole)
        process = self.start(whole)
        first = self.first_change(process, whole, begin)
        assert process.wait() == 0, process.stderr.read()
        self.seconds, self.after = time.monotonic() - first, content(whole)

    def copy(self, name: str) -> Path:
        place = self.folder / f"{self.action}-{name}"
        shutil.rmtree(place, ignore_errors=True)
        if self.base is not None:
            shutil.copytree(self.base, place)
        return place

    def start(self, store: Path) -> subprocess.Popen:
        return subprocess.Popen(
            command(self.action, self.folder, store),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def first_change(self, process, store: Path, begin: set[Path]) -> float:
        while process.poll() is None and names(store) == begin:
            time.sleep(0.0005)
        return time.monotonic()

    def kill(self, number: int) -> str:
        """Kill the action once; return what was left."""
        store = self.copy(str(number))
        delay = random.Random(f"{self.action}{number}").uniform(0, self.seconds)
        process = self.start(store)
        self.first_change(process, store, names(store))
        time.sleep(delay)
        process.kill()
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert content(store) == self.after
            return "it had ended"
        found = content(store)
        left = "as before" if found == self.before else "as after"
        if found not in (self.before, self.after):
            return f"WRONG: {len(found or {})} documents"
        wrong = [] if found is None else check(store)
        wrong = [line for line in wrong if "still being put in" not in line]
        if wrong:
            return f"WRONG: {wrong[0]}"
        again = self.start(store)
        said = again.communicate()[1].decode().strip().splitlines()
        done = self.action == "delete" and found == self.after
        if again.returncode != done or content(store) != self.after or check(store):
            return f"WRONG: the same command ends with {said[-1:]}"
        shutil.rmtree(store)
        return left


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--actions", nargs="+", choices=ACTIONS, default=ACTIONS)
    arguments = parser.parse_args()
    folder, status = arguments.output, 0
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jit")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    write_toy(folder / "model")
    for seed, name in enumerate("dar"):
        # What replaces has the ids of the first.
        write_documents(folder / f"{name}.jsonl", "d" if name == "r" else name, seed)
    base = folder / "base"
    trials = {"new": Trial("new", folder, None)}
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(folder / "new-whole", base)
    for action in arguments.actions:
        trial = trials.get(action) or Trial(action, folder, base)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            left = collections.Counter(threads.map(trial.kill, range(arguments.kills)))
        said = ", ".join(f"{count} {what}" for what, count in sorted(left.items()))
        print(f"{action}, {trial.seconds:.2f} s: {said}", flush=True)
        if action == "delete":  # what is compacted and indexed has deleted rows
            shutil.rmtree(base)
            shutil.copytree(folder / "delete-whole", base)
        status |= any("WRONG" in what for what in left)
    return status


if __name__ == "__main__":
    sys.exit(main())
