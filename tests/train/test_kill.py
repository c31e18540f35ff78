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


def start(folder, cache):
    # One device: the test is about processes, and eight fake ones are slow to start.
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "clara_jax.train", "--config=configs/tiny.py:scp"]
    command += [f"--config.workdir={folder}", "--config.optim.steps=60"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_killed_run_finishes_with_the_same_losses(tmp_path):
    cache = tmp_path / "jit"
    whole = start(tmp_path / "whole", cache)
    assert whole.wait() == 0, whole.stderr and whole.stderr.read()[-2000:]
    kills = 0
    for attempt in range(12):
        process = start(tmp_path / "killed", cache)
        seen = losses(tmp_path / "killed")
        wait = random.Random(attempt).uniform(0.05, 1.5)
        # Once the run has moved on, kill it a random while later.
        while process.poll() is None and losses(tmp_path / "killed") == seen:
            time.sleep(0.02)
        try:
            status = process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
            kills += 1
        assert process.stderr is not None
        shown = process.stderr.read()
        assert status in (0, -signal.SIGKILL), shown[-2000:]
        if status == 0:
            break
    assert kills > 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
