"""Every experiment says what it is, and is one."""

import ast
from pathlib import Path

import pytest

from clara_jax.train import read_experiment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "common")
BACKBONES = ("smollm2_135m", "mistral_7b", "phi4_mini")
STAGES = ("scp", "instruct", "end_to_end")


def read(path: Path, mode: str = ""):
    return read_experiment([f"--config={path}{mode and ':'}{mode}"])


def test_the_promised_experiments_are_there():
    promised = {f"{name}_{stage}" for name in BACKBONES for stage in STAGES}
    assert promised | {"quickstart", "tiny"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_experiment_is_valid_and_explained(path: Path):
    experiment = read(path)
    assert experiment.runs
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for heading in ("Source:", "Command: python -m clara_jax.train", "Hardware:"):
        assert heading in text, f"{path.name} does not say its {heading}"
    assert "Time" in text and f"--config=configs/{path.name}" in text


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("stage", STAGES)
def test_real_backbones_have_a_local_mode(backbone: str, stage: str):
    path = ROOT / "configs" / f"{backbone}_{stage}.py"
    (full,), (local,) = read(path).runs, read(path, "local").runs
    assert full.stage == local.stage == stage
    assert 0 < local.optim.steps <= 20 and 0 < local.data.limit <= 64
    assert local.data.batch_size <= 4
    assert local.workdir != full.workdir


@pytest.mark.parametrize("backbone", ["mistral_7b", "phi4_mini"])
def test_the_papers_settings(backbone: str):
    runs = {s: read(ROOT / "configs" / f"{backbone}_{s}.py").runs[0] for s in STAGES}
    for stage, run in runs.items():
        assert (run.lora.rank, run.lora.alpha, run.lora.dropout) == (16, 32.0, 0.1)
        assert run.lora.layers == ("all",)
        assert (run.optim.b1, run.optim.b2, run.optim.weight_decay) == (0.9, 0.95, 0.0)
        assert (run.optim.warmup_fraction, run.optim.clip_norm) == (0.03, 1.0)
        assert (run.optim.schedule, run.optim.epochs) == ("cosine", 1.0)
        assert run.optim.final_fraction == 0.1
        assert run.optim.learning_rate == (5e-6 if stage == "end_to_end" else 1e-4)
        assert run.data.batch_size == (32 if stage == "end_to_end" else 128)
        assert run.memory.doc_max_length == 256 and run.mse_weight == 0.1
        assert run.selection.top_k == (1 if stage == "scp" else 5)
        assert run.selection.temperature == 0.02
    last = runs["end_to_end"].data
    assert last.candidates == 20 and last.cache_vectors


def test_tiny_chains_its_stages():
    scp, instruct, last = read(ROOT / "configs" / "tiny.py", "all").runs
    assert instruct.init_from == scp.workdir and last.init_from == instruct.workdir
    assert scp.backbone == "random:tiny" and last.backbone == ""
