"""Stage 3 against a corpus by two processes: what one computes, and its resumption."""

import signal

import numpy as np
import pytest

from clara_jax.train import read_experiment, read_lines
from tests.distributed.test_processes import ROOT, Processes, numbers
from tests.train.tiny_store import store_maker


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder of all runs, and what makes them search the store in it."""
    folder = tmp_path_factory.mktemp("corpus")
    # Trained, so that all that is random comes from one file.
    Processes(folder, folder / "scp", 1, 1, "--config.optim.steps=1").finish()
    overrides = (
        f"--config.init_from={folder / 'scp'}",
        "--config.backbone=",
        "--config.tokenizer=",
        "--config.data.candidates=6",
        "--config.hooks.checkpoint_every=2",
    )
    given = [f"--config={ROOT}/configs/tiny.py:end_to_end", *overrides]
    (config,) = read_experiment([*given, f"--config.workdir={folder}/unused"]).runs
    store = store_maker(folder, config)("store").place
    search = (f"--config.store={store}", "--config.candidates=corpus")
    overrides = (*overrides, *search)
    Processes(folder, folder / "alone", 1, 2, *overrides, stage="end_to_end").finish()
    return folder, overrides


def evaluated(workdir):
    lines = read_lines(workdir / "metrics.jsonl")
    return {k: v for line in lines for k, v in line.items() if k.startswith("eval/")}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "tensor"])
def test_two_processes_find_what_one_finds(corpus, mesh):
    """By rows of their own; and both all rows, with parts of every matrix product."""
    folder, overrides = corpus
    alone, both = folder / "alone", folder / f"both_{mesh}"
    split = f"--config.mesh.{mesh}=4"
    Processes(folder, both, 2, 2, *overrides, split, stage="end_to_end").finish()
    # Tokens aside, which are counted twice where two processes make the same rows.
    ours, theirs = (numbers(workdir)[:, :3] for workdir in (both, alone))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for key, value in evaluated(alone).items():
        assert evaluated(both)[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.slow
def test_preempted_processes_go_on_as_one(corpus):
    folder, overrides = corpus
    steps = "--config.optim.steps=40"
    whole, parts = folder / "whole", folder / "preempted"
    Processes(folder, whole, 1, 2, *overrides, steps, stage="end_to_end").finish()
    first = Processes(folder, parts, 2, 1, *overrides, steps, stage="end_to_end")
    first.until(parts, 2)
    first.running[1].send_signal(signal.SIGTERM)
    assert first.wait() == [75, 75], first.text(0)[-3000:]
    done = len(numbers(parts))
    assert 2 <= done < 40
    second = Processes(folder, parts, 1, 2, *overrides, steps, stage="end_to_end")
    second.finish()
    assert f"going on after step {done} of 40" in second.text(0)
    np.testing.assert_allclose(numbers(parts), numbers(whole), rtol=1e-4)
