"""Experiments from their data to their report: whole, killed, and cut by a deadline."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fast_compiles import FAST_COMPILES

import clara_jax
from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.train.__main__ import main
from clara_jax.train.experiments import read_experiment
from clara_jax.train.loop import Run

ROOT = Path(__file__).resolve().parents[2]
SHORT, BRIEF = map(Path(__file__).with_name, ("short.py", "brief.py"))
RUNS = ("scp", "instruct", "end_to_end", "text", "closed_book")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of commands: one device, and programs compiled once for all of them."""
    return {
        **os.environ,
        "XLA_FLAGS": " ".join(FAST_COMPILES),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("jit")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(config, workdir, environment, log, program=("-m", "clara_jax.train")):
    command = [sys.executable, *program, f"--config={config}"]
    command += [f"--config.workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
    )


def measured(workdir):
    """What a report says, without times and places."""
    facts = read_json(workdir / "report.json")
    names = ("all", "sources", "corpus", "questions")
    steps = [(t["name"], t["steps"], t["tokens"], t["loss"]) for t in facts["training"]]
    return {name: facts[name] for name in names}, steps


@pytest.mark.slow
def test_smoke_ends_with_a_report_and_adapters_that_load_by_name(
    tmp_path, environment, monkeypatch
):
    with (tmp_path / "log.txt").open("w+") as log:
        folder = tmp_path / "run"
        well = {**environment, "XLA_FLAGS": ""}  # worth it for hundreds of steps
        process = start(BRIEF, folder, well, log)
        assert process.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    shown = (tmp_path / "log.txt").read_text()
    text = (folder / "report.md").read_text()
    assert text in shown and (folder / "curves.png").stat().st_size > 10_000
    facts = read_json(folder / "report.json")
    assert [t["name"] for t in facts["training"]] == list(RUNS)
    assert facts["questions"]["answered"] == facts["questions"]["of"]
    answers = {n: v["f1"]["mean"] for n, v in facts["all"]["answers"].items()}
    # It has learned: the memory says what only the right document knows, and stage 3
    # has found out which one that is.
    assert answers["gold"] > answers["shuffled"] + 0.3
    ranked = facts["all"]["retrieval"]
    first, before = (ranked[n]["recall@1"] for n in ("model", "before"))
    assert first["low"] > before["mean"] + 0.1
    assert facts["corpus"]["rankings"].keys() == {"model", "before", "bm25"}
    # The adapters of each stage lie beside, small, and are found by name.
    assert {p.name for p in (folder / "adapters").iterdir()} == set(RUNS)
    (folder / "adapters" / "end_to_end").rename(folder / "adapters" / "toy-clara-4x")
    monkeypatch.setenv("CLARA_JAX_MODELS", str(folder / "adapters"))
    config = clara_jax.AnswerConfig(max_new_tokens=6)
    clara = clara_jax.load("toy-clara-4x", config)
    held_out = (folder / "mix/held_out/encyclopedia.jsonl").read_text()
    first = json.loads(held_out.splitlines()[0])
    found = clara.select_and_answer([first["question"]], [first["docs"]], top_k=1)
    assert found.answers[0] and found.indices.shape == (1, 1)
    # As it came out of training, but for the rounding to bfloat16.
    same = clara_jax.load(folder / "end_to_end", config)
    vectors = [c.compress(first["docs"][:4]) for c in (clara, same)]
    difference = abs(vectors[0] - vectors[1]).max()
    assert 0 < difference < 0.2 * abs(vectors[1]).max()


@pytest.mark.slow
def test_an_experiment_that_is_killed_goes_on_to_the_same_report(tmp_path, environment):
    log = (tmp_path / "log.txt").open("w+")
    whole = start(SHORT, tmp_path / "whole", environment, log)
    assert whole.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    folder = tmp_path / "killed"
    # A file that appears, and then a random while: in the mix, in a step, between two
    # runs, in the evaluation.
    moments = ("data", "scp/metrics.jsonl", "adapters/scp", "end_to_end/vectors")
    draw = random.Random(0)
    for moment in (*moments, "text/summary.json", "report/predictions.jsonl"):
        process = start(SHORT, folder, environment, log)
        while process.poll() is None and not (folder / moment).exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(SHORT, folder, environment, log)
    assert last.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    log.close()
    assert measured(folder) == measured(tmp_path / "whole")
    # Once more: it only shows the report again.
    with (tmp_path / "again.txt").open("w+") as log:
        assert start(SHORT, folder, environment, log).wait() == 0
    assert (folder / "report.md").read_text() in (tmp_path / "again.txt").read_text()


@pytest.mark.slow
def test_a_deadline_cuts_every_stage_and_the_report_still_comes(tmp_path, environment):
    """On a clock by which every look takes a minute: real time does not count."""
    program = ("-m", "tests.pipeline.slow_clock", "--config.minutes=180")
    with (tmp_path / "log.txt").open("w+") as log:
        run = start(f"{SHORT}:1000", tmp_path / "run", environment, log, program)
        assert run.wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    facts = read_json(tmp_path / "run" / "report.json")
    for stage in facts["training"]:
        assert stage["cut"]["of"] == 1000 and 2 <= stage["steps"] < 40
        lines = (tmp_path / "run" / stage["name"] / "metrics.jsonl").read_text()
        rates = [json.loads(x)["lr"] for x in lines.splitlines() if '"lr"' in x]
        config = read_json(tmp_path / "run" / stage["name"] / "config.json")
        # The rate has fallen to its floor when the time is over, not before.
        assert rates[-1] < 0.4 * max(rates)
        assert max(rates) <= config["optim"]["learning_rate"] * 1.0001
    assert "(time)" in (tmp_path / "run" / "report.md").read_text()
    assert 0 < facts["questions"]["answered"] <= facts["questions"]["of"]
    assert "of 1000 steps in" in (tmp_path / "log.txt").read_text()


def test_a_deadline_too_short_for_a_compilation_is_one_line(
    tmp_path, capsys, monkeypatch
):
    given = [f"--config={SHORT}", f"--config.workdir={tmp_path / 'run'}"]
    assert main([*given, "--config.minutes=0.0001"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: config field 'minutes': making the data alone took")
    # The data are there now, and that they took time is forgotten; what is left is over
    # in the first step, by a clock on which every look takes an hour.
    assert not (tmp_path / "run" / "time.json").exists()
    hours = itertools.count(1)
    monkeypatch.setattr(Run, "wall", lambda clock: 3600.0 * next(hours))
    assert main([*given, "--config.minutes=60"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: config field 'minutes': ")
    assert "taking the first step took" in error and "give at least" in error
    assert not (tmp_path / "run" / "scp" / "summary.json").exists()


def test_a_single_run_ends_at_its_own_deadline(tmp_path, monkeypatch, capsys):
    seconds = itertools.count(1)
    monkeypatch.setattr(Run, "wall", lambda clock: float(next(seconds)))
    folder = tmp_path / "run"
    given = [f"--config={ROOT / 'configs/tiny.py'}:scp", f"--config.workdir={folder}"]
    given += ["--config.minutes=0.5", "--config.optim.steps=1000"]
    assert main(given) == 0
    summary = read_json(folder / "summary.json")
    assert summary["cut"]["of"] == 1000 and 2 < summary["steps"] < 30
    assert "of 1000 steps in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mix.recipe=nowhere.toml"], "nowhere.toml"),
        (["mix.recipe="], "'mix.recipe' is empty, and"),
        (["mix.folder="], "'mix.folder': is empty; give a path"),
        (["mix.data=/nowhere/at/all"], "no such file or folder"),
        (["minutes=-1"], "'minutes': must not be negative"),
        (["report.questions=0"], "'report.questions': must be above 0"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    tmp_path, capsys, overrides, message
):
    given = [f"--config={SHORT}", f"--config.workdir={tmp_path / 'run'}"]
    assert main([*given, *(f"--config.{text}" for text in overrides)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "run" / "scp").exists()


def test_a_mix_that_was_made_before_needs_no_sources(tmp_path):
    from clara_jax.pipeline import prepare

    (tmp_path / "mix").mkdir()
    (tmp_path / "mix" / "manifest.json").write_text("{}")
    (run,) = read_experiment([f"--config={ROOT / 'configs/tiny.py'}:scp"]).runs
    prepare({"folder": str(tmp_path / "mix")}, run)
    with pytest.raises(ClaraError, match="holds no mix; give a recipe"):
        prepare({"folder": str(tmp_path)}, run)
