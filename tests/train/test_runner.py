"""Whole runs of the tiny experiment: resumed, chained, refused.

One compilation cache serves the module, so that a resumed run costs no second one.
"""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from clara_jax.commands import Interrupted
from clara_jax.convert import load_model
from clara_jax.data import open_records
from clara_jax.search import Store
from clara_jax.train import (
    document_vectors,
    read_experiment,
    read_lines,
    run,
    runner,
)
from clara_jax.train.__main__ import main
from clara_jax.train.parts import Parts

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    values = (str(tmp_path_factory.mktemp("jit")), 0.5, 0)
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, values, strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


def read(stage, *overrides):
    return read_experiment([f"--config={CONFIG}:{stage}", *overrides]).runs[0]


def losses(folder):
    return [(x["step"], x["loss"]) for x in read_lines(folder / "metrics.jsonl")]


class Stop:
    """An evaluator that sends this process a signal the first time it runs."""

    def run(self, state):
        os.kill(os.getpid(), signal.SIGTERM)
        yield "stopped", 1.0


@pytest.fixture(scope="module")
def scp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scp") / "run"
    run(read("scp", f"--config.workdir={folder}"))
    return folder


def test_a_finished_run_is_a_model_folder(scp, capfd):
    assert [step for step, _ in losses(scp)] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((scp / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["final"]["loss"] == losses(scp)[-1][1]
    assert summary["parameters"]["trainable"] == 2 * 4096 + 2 * 32
    model = load_model(scp)
    assert model.clara is not None and model.clara.stage == "scp"
    assert model.adapters is not None
    assert set(model.adapters) == {"compressor", "generator", "memory"}
    assert any(np.any(x) for x in jax.tree.leaves(model.adapters["generator"]))
    assert json.loads((scp / "config.json").read_text())["stage"] == "scp"
    # The same command again does nothing.
    run(read("scp", f"--config.workdir={scp}"))
    assert "already finished" in capfd.readouterr().err


def test_interrupted_run_goes_on_bit_for_bit(scp, tmp_path, capfd, monkeypatch):
    config = read(
        "scp", f"--config.workdir={tmp_path}/r", "--config.hooks.eval_every=3"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "evaluators", lambda parts: [Stop()])
        with pytest.raises(
            Interrupted, match="SIGTERM: step 3 of 6 is saved.*same command"
        ):
            run(config)
    assert not (tmp_path / "r" / "summary.json").exists()
    # Lines after the checkpoint, as a killed process leaves them.
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 9.9}\n{"step": 5, "lo')
    run(config)
    assert "going on after step 3 of 6" in capfd.readouterr().err
    found = [x for x in losses_of(tmp_path / "r") if "loss" in x]
    assert [(x["step"], x["loss"]) for x in found] == losses(scp)
    a, b = load_model(scp).adapters, load_model(tmp_path / "r").adapters
    jax.tree.map(np.testing.assert_array_equal, a, b)


def losses_of(folder):
    return read_lines(folder / "metrics.jsonl")


def test_later_stages_start_from_earlier_folders(scp, tmp_path):
    overrides = (
        f"--config.init_from={scp}",
        "--config.backbone=",
        "--config.tokenizer=",
        "--config.optim.steps=2",
    )
    last = tmp_path / "last"
    config = read(
        "end_to_end",
        *overrides,
        f"--config.workdir={last}",
        "--config.data.cache_vectors=True",
    )
    run(config)
    final = json.loads((last / "summary.json").read_text())["final"]
    assert {"recall@1", "eval/loss", "eval/recall@1", "eval/selected/f1"} <= set(final)
    before, after = load_model(scp), load_model(last)
    assert before.adapters is not None and after.adapters is not None
    for name in ("compressor", "memory"):
        jax.tree.map(
            np.testing.assert_array_equal, before.adapters[name], after.adapters[name]
        )
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    moved = jax.tree.map(
        np.array_equal, after.adapters["reasoner"], after.adapters["compressor"]
    )
    assert not all(jax.tree.leaves(moved))
    assert not (last / "backbone").exists()


def test_a_deadline_leaves_out_records_whose_documents_are_not_compressed(
    scp, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(document_vectors, "CHUNK", 1)
    make_feed = runner.make_feed

    def make_late(parts, claim, check, late):
        assert late is not None
        return make_feed(parts, claim, check, lambda: True)

    monkeypatch.setattr(runner, "make_feed", make_late)
    config = read(
        "end_to_end",
        f"--config.init_from={scp}",
        "--config.backbone=",
        "--config.tokenizer=",
        "--config.optim.steps=2",
        f"--config.workdir={tmp_path / 'run'}",
        "--config.data.cache_vectors=True",
        "--config.data.batch_size=2",
        "--config.minutes=1000",
    )
    run(config)
    said = capfd.readouterr().err
    assert "time for the documents of " in said and "/run: 2 steps in" in said
    (made,) = (tmp_path / "run" / "vectors").iterdir()
    documents = [
        d for i in (0, 1) for d in open_records(config.data.train)[i].documents
    ]
    store = Store.open(made)  # of the documents of one batch
    assert store.strings(store.ids, "text") == list(dict.fromkeys(documents))


@pytest.mark.slow
def test_a_base_is_pretrained_into_a_plain_model_folder(tmp_path):
    workdir = f"--config.workdir={tmp_path}/base"
    run(read("lm", workdir, "--config.optim.steps=1"))
    model = load_model(tmp_path / "base")
    assert model.clara is None and model.adapters is None
    assert model.params["embed"]["embedding"].shape[0] == len(model.tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.data.train=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--config.backbone=random:huge"], "no preset 'huge'"),
        (["--config.tokenizer="], "'tokenizer' is empty"),
        (["--config.data.batch_size=100"], "data.batch_size': 100 is more than"),
        (["--config.init_from=nowhere"], "nowhere"),
        (["--config.optim.learning_rat=1"], "did you mean 'optim.learning_rate'"),
        (["--config.stage=instruct"], "init_from"),
    ],
)
def test_bad_input_is_one_line_and_status_one(tmp_path, capsys, overrides, message):
    command = [f"--config={CONFIG}:scp", f"--config.workdir={tmp_path}/r", *overrides]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]
    assert not (tmp_path / "r" / "config.json").exists()


@pytest.mark.parametrize("acts", [True, False])
def test_control_tokens_in_texts_are_a_choice(tmp_path, acts):
    given = [] if acts else ["--config.data.control_tokens=False"]
    parts = runner.assemble(read("scp", f"--config.workdir={tmp_path}", *given))
    found = parts.tokenizer.encode_text(f"a {parts.tokenizer.eos} b")
    assert (parts.tokenizer.eos_id in found) == acts


def test_a_folder_of_another_run_is_refused(scp, capsys):
    before = (scp / "config.json").read_text()
    command = [f"--config={CONFIG}:scp", f"--config.workdir={scp}", "--config.seed=3"]
    assert main(command) == 1
    assert "another config: seed (was 0, now 3)" in capsys.readouterr().err
    assert (scp / "config.json").read_text() == before


def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_good_state(
    scp, tmp_path, capsys
):
    command = [
        f"--config={CONFIG}:scp",
        f"--config.workdir={tmp_path}/r",
        "--config.optim.learning_rate=1e30",
        "--config.optim.clip_norm=0",
    ]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "not finite at step" in error and "is saved in" in error
    model = load_model(tmp_path / "r")
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(model.adapters))


def test_usage_is_shown(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--config=FILE" in capsys.readouterr().out
    assert main([]) == 1
