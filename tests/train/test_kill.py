"""SIGKILL at a random moment, and the same command again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clara_jax.train import read_lines

ROOT = Path(__file__).resolve().parents[2]


def start(folder, cache, log):
    # One device: the test is about processes, and eight fake ones are slow to start.
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "clara_jax.train", "--config=configs/tiny.py:scp"]
    command += [f"--config.workdir={folder}", "--config.optim.steps=60"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)


def losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_killed_run_finishes_with_the_same_losses(tmp_path):
    cache, text = tmp_path / "jit", tmp_path / "stderr.txt"
    with text.open("w") as log:
        whole = start(tmp_path / "whole", cache, log)
        assert whole.wait() == 0, text.read_text()[-2000:]
        folder = tmp_path / "killed"
        draw = random.Random(0)
        for _ in range(3):
            process = start(folder, cache, log)
            # Kill it a random while after it has saved something new.
            names = [path.name for path in folder.glob("checkpoints/*")]
            goal = 3 + max((int(name) for name in names if name.isdigit()), default=0)
            while process.poll() is None and len(losses(folder)) < goal:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.1, 0.5))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, text.read_text()[-2000:]
        assert 0 < len(losses(folder)) < 60 and not (folder / "summary.json").exists()
        last = start(folder, cache, log)
        assert last.wait() == 0, text.read_text()[-2000:]
    assert "going on after step" in text.read_text()
    assert losses(folder) == losses(tmp_path / "whole")
