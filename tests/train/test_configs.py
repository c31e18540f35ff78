"""Every experiment in `configs` is valid; the big ones hold the paper's settings."""

import ast
from pathlib import Path

import pytest

from clara_jax.train.experiments import read_experiment

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(p for p in CONFIGS.glob("*.py") if p.stem != "common")
BIG = [p for p in FILES if p.stem.startswith(("mistral_7b", "phi4_mini"))]
WITH_LOCAL = [p for p in FILES if "smollm2" in p.stem] + BIG


def read(path, arg=""):
    return read_experiment([f"--config={path}:{arg}" if arg else f"--config={path}"])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_experiment_is_valid_and_says_what_it_is(path):
    experiment = read(path)
    assert experiment.runs
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for word in ("Source:", "Command: python -m clara_jax.train", "Hardware:", "ime"):
        assert word in text, f"{path.name} does not say: {word}"


@pytest.mark.parametrize("path", WITH_LOCAL, ids=lambda p: p.stem)
def test_local_mode_is_small(path):
    (run,) = read(path, "local").runs
    assert run.optim.steps <= 20 and run.data.limit <= 64 and run.data.batch_size <= 4


@pytest.mark.parametrize("path", BIG, ids=lambda p: p.stem)
def test_big_experiments_have_the_papers_settings(path):
    (run,) = read(path).runs
    last = run.stage == "end_to_end"
    assert (run.lora.rank, run.lora.alpha, run.lora.dropout) == (16, 32.0, 0.1)
    assert run.lora.layers == ("all",) and run.memory.doc_max_length == 256
    assert (run.optim.b1, run.optim.b2, run.optim.weight_decay) == (0.9, 0.95, 0.0)
    assert (run.optim.warmup_fraction, run.optim.clip_norm) == (0.03, 1.0)
    assert run.optim.epochs == 1 and run.optim.final_fraction == 0.1
    assert run.optim.learning_rate == (5e-6 if last else 1e-4)
    assert run.data.batch_size == (32 if last else 128) and run.mse_weight == 0.1
    assert run.selection.top_k == (1 if run.stage == "scp" else 5)
    assert run.selection.temperature == 0.02
    if last:
        assert run.data.candidates == 20 and run.data.cache_vectors


def test_tiny_chains_its_stages():
    scp, instruct, last = read(CONFIGS / "tiny.py", "all").runs
    assert instruct.init_from == scp.workdir and last.init_from == instruct.workdir
    assert scp.backbone == "random:tiny" and last.backbone == ""
