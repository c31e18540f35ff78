"""The accelerator's benchmark on a CPU: its rows, and what it does without them."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

import accelerator
from device_figures import Work, peak_flops, program_memory, times
from random_runs import Runs, fill

from clara_jax.config import MemoryConfig
from clara_jax.model import PRESETS


def _run(capsys, tmp_path, *arguments):
    path = tmp_path / "found.json"
    begin = ["--shape", "tiny", "--rounds", "2", "--json", str(path)]
    status = accelerator.main([*begin, *arguments])
    return status, capsys.readouterr(), json.loads(path.read_text())


@pytest.fixture
def short(monkeypatch):
    """Rows that take no time: a work for each, or what it raises."""

    def work(*_, **__):
        program = jax.jit(lambda x: x + 1).lower(jnp.zeros(8)).compile()
        x = jnp.zeros(8)
        return Work(program, lambda _: program(x), {"tokens": 8}, flops=8.0, moved=64.0)

    monkeypatch.setattr(accelerator, "product", work)
    monkeypatch.setattr(accelerator, "copy", work)
    monkeypatch.setattr(Runs, "__post_init__", lambda self: setattr(self, "size", 1))
    monkeypatch.setattr(Runs, "train", work)
    monkeypatch.setattr(Runs, "compression", work)
    monkeypatch.setattr(
        Runs, "decoding", lambda self, *_, **__: (work(), lambda: work())
    )
    return work


def test_all_rows_in_order_and_in_the_file(short, capsys, tmp_path):
    status, told, found = _run(capsys, tmp_path, "--dtype", "bfloat16")
    labels = [row["label"] for row in found["rows"]]
    assert status == 0 and len(labels) == 18  # no attention row without an NVIDIA GPU
    assert labels[:4] == ["product 512^3", "product 512^3 as layers", *labels[2:4]]
    assert all(row["median_s"] > 0 and row["rounds"] == 2 for row in found["rows"])
    shown = told.out.splitlines()
    assert [line for label in labels for line in shown if line.startswith(label)]
    assert found["shape"] == "tiny" and found["seconds"] > 0


def test_too_little_memory_costs_one_row(short, monkeypatch, capsys, tmp_path):
    def too_large(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(Runs, "train", too_large)
    only = ("--only", "copy", "scp", "compress")
    status, told, found = _run(capsys, tmp_path, *only)
    assert status == 0 and [row.get("failed") for row in found["rows"]] == [
        None,
        "out of memory",
        None,
    ]
    assert "scp                         out of memory" in told.out


def test_another_failure_is_a_line_and_a_status(short, monkeypatch, capsys, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("INTERNAL: no such kernel\nand a page of it")

    monkeypatch.setattr(Runs, "decoding", broken)
    status, told, found = _run(capsys, tmp_path, "--only", "vectors", "rerank")
    failed = [row.get("failed") for row in found["rows"]]
    missing = "no first token to go on from"
    assert failed == 2 * ["INTERNAL: no such kernel", missing] + [None]
    assert status == 1 and "a page of it" not in told.out


def test_rows_after_the_time_are_said_to_be_left_out(short, capsys, tmp_path):
    only = ("--only", "product", "scp", "--seconds", "0")
    status, told, found = _run(capsys, tmp_path, *only)
    assert status == 0 and told.out.count("left out: 0 s are over") == 2
    assert all("left_out" in row for row in found["rows"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", "20"), "error: --prompt 20: give "),
        (("--dtype", "int4"), "'model.dtype': is 'int4'"),
        (("--json", "no/such/folder.json"), "error: --json no/such/folder.json: No"),
    ],
)
def test_mistakes_are_one_line(arguments, says, capsys):
    assert accelerator.main(["--shape", "tiny", *arguments]) == 1
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1


def test_too_large_a_backbone_is_told_before_it_is_made(monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "device_memory", lambda _: 15e9)
    assert accelerator.main(["--shape", "mistral_7b", "--dtype", "bfloat16"]) == 1
    assert "the weights of mistral_7b take 14.5 GB" in capsys.readouterr().err


def test_filled_trees_have_their_shapes_and_types():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((6, 300), jnp.bfloat16),
        "norm": {"scale": jax.ShapeDtypeStruct((5,), jnp.float32)},
        "opt_state": jax.ShapeDtypeStruct((3,), jnp.float32),
        "healthy": jax.ShapeDtypeStruct((), bool),
    }
    made = fill(shapes)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shapes)
    assert made["kernel"].dtype == jnp.bfloat16
    assert 0.018 < np.asarray(made["kernel"], np.float32).std() < 0.022
    assert jnp.all(made["norm"]["scale"] == 1) and made["healthy"]
    assert not jnp.any(made["opt_state"])


def test_peaks_and_memory():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None
    program = jax.jit(lambda x: x + 1).lower(jnp.zeros(1024)).compile()
    assert program_memory(program) >= 8192
    work = Work(program, lambda x: program(x), {}, setup=lambda: jnp.zeros(1024))
    assert len(times(work, 3, 60.0)) == 3 and len(times(work, 9, 0.0)) == 2


@pytest.mark.slow
def test_every_kind_of_row_is_measured(capsys, tmp_path):
    only = ("--only", "product", "copy", "scp", "compress", "vectors")
    status, _, found = _run(capsys, tmp_path, *only, "--layers", "1", "--answers", "1")
    assert status == 0
    for row in found["rows"]:
        assert "failed" not in row and row["slowest_s"] >= row["fastest_s"] > 0
    (scp,) = (row for row in found["rows"] if row["row"] == "scp")
    # Documents of 39 tokens and prompts of 96, and 4 operations for each weight of the
    # layer; two heads of 64 positions where 32 have labels.
    tokens, weights = 4 * (39 + 96), 9216 + 64
    assert scp["tokens_per_s"] * scp["median_s"] == pytest.approx(tokens)
    flops = 4 * tokens * weights + 4 * 4 * 64 * 32 * 128
    assert scp["flops_per_s"] * scp["median_s"] == pytest.approx(flops)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["instruct", "end_to_end", "rerank"])
def test_steps_on_random_weights_are_finite(stage):
    runs = Runs(
        shape=dataclasses.replace(PRESETS["tiny"], num_layers=1),
        memory=MemoryConfig(32, 8),
        prompt=96,
        answer=32,
        question=16,
        new=4,
        remat="none",
    )
    work = runs.train(stage, 1)
    metrics = [work.run(None) for _ in range(2)]
    assert all(bool(step["finite"]) for step in metrics)
    assert float(metrics[0]["loss"]) != float(metrics[1]["loss"])
