"""SIGKILL at a random moment, and the same command again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fast_compiles import FAST_COMPILES

from clara_jax.convert import load_model
from clara_jax.train import read_lines

ROOT = Path(__file__).resolve().parents[2]


def start(folder, cache, log, steps=60, *, every=2):
    # One device: the test is about processes, and eight fake ones are slow to start.
    environment = {
        **os.environ,
        "XLA_FLAGS": " ".join(FAST_COMPILES),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "clara_jax.train", "--config=configs/tiny.py:scp"]
    command += [f"--config.workdir={folder}", f"--config.optim.steps={steps}"]
    command += [f"--config.hooks.checkpoint_every={every}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)


def losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines]


def newest(folder):
    names = [path.name for path in folder.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def adapters(folder):
    model = load_model(folder)
    return jax.tree.leaves((model.adapters, model.rows))


@pytest.mark.slow
def test_killed_run_finishes_with_the_same_numbers(tmp_path, pytestconfig):
    """Every step is saved, so that about every other kill meets a save half done."""
    kills = pytestconfig.getoption("--kills")
    steps, half_done = 20 * kills, 0
    cache, text = tmp_path / "jit", tmp_path / "stderr.txt"
    with text.open("w") as log:
        whole = start(tmp_path / "whole", cache, log, steps, every=1)
        assert whole.wait() == 0, text.read_text()[-2000:]
        folder = tmp_path / "killed"
        draw = random.Random(0)
        for _ in range(kills):
            process = start(folder, cache, log, steps, every=1)
            # Kill it somewhere in the steps after it has saved something new.
            goal = newest(folder) + 1 + draw.randrange(8)
            while process.poll() is None and newest(folder) < goal:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, text.read_text()[-2000:]
            half_done += any(folder.glob("checkpoints/*tmp*"))
        assert 0 < len(losses(folder)) < steps
        assert not (folder / "summary.json").exists()
        last = start(folder, cache, log, steps, every=1)
        assert last.wait() == 0, text.read_text()[-2000:]
    print(f"{kills} kills, {half_done} in the middle of a save")
    assert text.read_text().count("going on after step") >= kills
    assert losses(folder) == losses(tmp_path / "whole")
    for ours, theirs in zip(
        adapters(folder), adapters(tmp_path / "whole"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
