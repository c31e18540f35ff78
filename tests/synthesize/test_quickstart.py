"""The quickstart from end to end, with a handful of steps."""

import json
from pathlib import Path

import pytest

from clara_jax.synthesize import prepare, report
from clara_jax.train.__main__ import make_evaluators
from clara_jax.train.experiments import expand, load_config
from clara_jax.train.runner import run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.slow
def test_every_stage_runs_and_is_reported(tmp_path, capsys):
    config = load_config(str(CONFIGS / "quickstart.py"))
    config.workdir = str(tmp_path)
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.synthesize.update({"scp": 40, "instruct": 40, "end_to_end": 40})
    config.synthesize.held_out = 8
    stages = []
    for stage in config.stages:
        stage = stage.to_dict() if hasattr(stage, "to_dict") else dict(stage)
        stage["optim"]["steps"] = 2
        stage["data"].pop("batch_size", None)
        stages.append(stage)
    config.stages = tuple(stages)
    experiment = expand(config)
    prepare(tmp_path, experiment.synthesize)
    for settings in experiment.runs:
        run(settings, make_evaluators)
    report(tmp_path, experiment.synthesize)
    shown = capsys.readouterr().out
    assert "python -m clara_jax.answer" in shown and "Recall@5" in shown
    numbers = json.loads((tmp_path / "report.json").read_text())["numbers"]
    assert numbers["base/text/exact_match"] >= 0.9
    assert 0 <= numbers["after/recall@1"] <= 1
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_base_experiment_is_complete():
    experiment = expand(load_config(str(CONFIGS / "quickstart_base.py")))
    (settings,) = experiment.runs
    assert settings.stage == "lm"
    needed = settings.optim.steps * settings.data.batch_size
    assert experiment.synthesize is not None
    assert experiment.synthesize["pretraining"] >= needed
