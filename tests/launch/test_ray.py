"""Parts of a store written by the tasks of a Ray cluster on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_folder import write_toy

from clara_jax.search import Store, check

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "ray_compress.py"


def run(*arguments):
    line = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_tasks_write_one_store(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    model = write_toy(tmp_path / "model")
    lines = [{"id": f"d{i}", "text": "Ada Bell was born in Corin ."} for i in range(9)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(map(json.dumps, lines)))
    own = ("--model", model, "--corpus", corpus, "--store", tmp_path / "store")
    tasks = ("--parts", 2, "--cpus", 0.5, "--")
    done = run(*tasks, *own, "--shard-size", 2)
    assert done.returncode == 0, done.stderr
    assert len(Store.open(tmp_path / "store")) == 9
    assert check(tmp_path / "store") == []
    # What a task says and its exit status arrive.
    done = run(*tasks, *own, "--shard-size", 3)
    assert done.returncode == 1
    assert "holds a finished store" in done.stdout + done.stderr
