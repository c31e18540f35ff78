"""Training over a backbone in int8 and nf4: it learns, on any mesh; no codes in files.

What takes long is done with one kind here, with the other where there is time.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from clara_jax.clara import vector_fingerprint
from clara_jax.config import (
    DataConfig,
    MemoryConfig,
    OptimConfig,
    RunConfig,
)
from clara_jax.convert import load_model
from clara_jax.model import PRESETS, logical_axes, quantize_params
from clara_jax.sharding import make_mesh, named_sharding, tree_shardings
from clara_jax.stages import make_loss
from clara_jax.testing import random_batch, toy_network
from clara_jax.train import read_experiment, read_lines, run
from clara_jax.train.__main__ import main
from clara_jax.train.abstract_run import abstract_run
from clara_jax.train.state import count_bytes, init_state, make_optimizer, make_schedule
from clara_jax.train.step import compile_on_mesh, make_train_step

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
KINDS = ("int8", "nf4")


def slow(kind):
    return pytest.param(kind, marks=pytest.mark.slow)


def one_step(kind, sizes):
    """A step of scp by plain descent; no sizes are one device."""
    devices = jax.devices()[: int(np.prod([*sizes.values(), 1]))]
    mesh = make_mesh(**{"data": 1, **sizes}, devices=devices)
    toy = toy_network(tied=False, width=64, mlp_dim=128, head_dim=16)
    params = dict(toy.backbone["params"])
    # Embeddings near unit size: the norm's slope would blow up rounding otherwise.
    params["embed"] = jax.tree.map(lambda x: 50 * x, params["embed"])
    backbone = {**toy.backbone, "params": quantize_params(params, kind)}
    config = OptimConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0)
    schedule = make_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    step = make_train_step(make_loss("scp"), optimizer, schedule)
    trainable = {n: toy.adapters[n] for n in ("compressor", "generator")}
    trainable["memory"] = 50 * toy.adapters["memory"]
    state = init_state(trainable, optimizer, jax.random.key(3))
    given = state, toy.replace(backbone=backbone, adapters={})
    given = jax.device_put(given, tree_shardings(mesh, given, logical_axes))
    # Of this batch the gradient is well conditioned: another order of sums would move
    # that of batch 0 by 2e-5, with the same kernels widened beforehand as well.
    batch = jax.device_put(
        random_batch("scp", rows=8, seed=2), named_sharding(mesh, "batch")
    )
    compiled = compile_on_mesh(step, mesh, given[0])
    with jax.set_mesh(mesh):
        state, metrics = compiled(*given, batch)
    return jax.device_get((metrics, state.trainable)), given[1].backbone["params"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [slow("int8"), "nf4"])
def test_a_mesh_gives_the_numbers_of_one_device(kind):
    (expected, alone), _ = one_step(kind, {})
    (metrics, split), params = one_step(kind, {"fsdp": 2, "tensor": 2})
    for name, value in expected.items():
        np.testing.assert_allclose(
            metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name
        )
    # After Adam's first step a change of sign would be a whole learning rate.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        split,
        alone,
    )
    codes = params["layers"]["mlp"]["down"]["codes"]
    assert {s.data.nbytes for s in codes.addressable_shards} == {codes.nbytes // 4}


def read(kind, folder, *overrides):
    given = [
        f"--config={CONFIG}:scp",
        f"--config.quantize={kind}",
        f"--config.workdir={folder}",
        *overrides,
    ]
    return read_experiment(given).runs[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", slow("nf4")])
def test_the_loss_falls_and_the_folder_holds_whole_weights(kind, tmp_path):
    folder = tmp_path / "scp"
    faster = ("--config.optim.learning_rate=0.03", "--config.optim.steps=40")
    run(read(kind, folder, *faster))
    losses = [line["loss"] for line in read_lines(folder / "metrics.jsonl")]
    # Heads of a random backbone differ little: unquantized, it falls as far.
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.25, losses
    assert json.loads((folder / "config.json").read_text())["quantize"] == kind
    assert "quantize" not in (folder / "model.json").read_text()
    # A random base is written as it was used; quantized again it is the same.
    model = load_model(folder)
    kernel = model.params["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.dtype == np.float32 and len(np.unique(kernel[0, :32, 0])) < 33
    again = quantize_params(model.params, kind)
    sizes = json.loads((folder / "summary.json").read_text())["parameters"]
    special = count_bytes(model.rows)
    assert sizes["frozen_bytes"] == count_bytes(again) + special


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_later_stage_over_the_written_base_with_vectors_made_beforehand(
    kind, tmp_path
):
    run(read(kind, tmp_path / "scp", "--config.optim.steps=1"))
    overrides = [
        f"--config={CONFIG}:end_to_end",
        f"--config.quantize={kind}",
        f"--config.workdir={tmp_path}/end_to_end",
        f"--config.init_from={tmp_path}/scp",
        "--config.backbone=",
        "--config.tokenizer=",
        "--config.optim.steps=1",
        "--config.data.cache_vectors=True",
        "--config.data.eval=",
    ]
    run(read_experiment(overrides).runs[0])
    before, after = load_model(tmp_path / "scp"), load_model(tmp_path / "end_to_end")
    assert not (tmp_path / "end_to_end" / "backbone").exists()
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_what_is_trained_is_not_quantized(tmp_path, capsys):
    for overrides, message in (
        (("lm", "int8"), "'quantize': is 'int8', but stage lm trains the backbone"),
        (("scp", "int4"), "'quantize': is 'int4', but must be one of none, int8, nf4"),
    ):
        stage, kind = overrides
        command = [f"--config={CONFIG}:{stage}", f"--config.quantize={kind}"]
        assert main([*command, f"--config.workdir={tmp_path}/r"]) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and message in error[0]


@pytest.mark.slow
def test_full_size_models_weigh_less_in_shapes():
    config = RunConfig(
        stage="end_to_end",
        workdir="unused",
        backbone="random:mistral_7b",
        dtype="bfloat16",
        remat="full",
        memory=MemoryConfig(doc_max_length=256, compression_rate=16),
        data=DataConfig(batch_size=32, prompt_max_length=1024, candidates=20),
        optim=OptimConfig(steps=10),
    )
    shape = PRESETS["mistral_7b"]
    sizes = {}
    for kind in ("none", *KINDS):
        made = abstract_run(dataclasses.replace(config, quantize=kind), shape, 32_000)
        sizes[kind] = count_bytes(made.network.backbone["params"])
        if kind == "nf4":
            jax.eval_shape(made.step, *made.arguments)
    kernels = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    outputs = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    rest = sizes["none"] - 2 * kernels
    assert rest == 2 * (2 * 32_000 * 4096 + 65 * 4096)
    assert sizes["int8"] == rest + kernels + 4 * outputs
    assert sizes["nf4"] == rest + kernels // 2 + 2 * kernels // 64


def test_cached_vectors_are_those_of_one_kind_of_weights():
    toy = toy_network()
    found = set()
    for kind in ("none", *KINDS):
        params = quantize_params(jax.device_get(toy.backbone["params"]), kind)
        backbone = {**toy.backbone, "params": params}
        network = toy.replace(backbone=backbone)
        found.add(vector_fingerprint(network))
    assert len(found) == 3
