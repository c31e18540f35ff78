"""Backbones at full size, in shapes: they trace and weigh right."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from clara_jax.config import DataConfig, MemoryConfig, OptimConfig, RunConfig
from clara_jax.model import PRESETS
from clara_jax.train.abstract_run import abstract_run
from clara_jax.train.state import count_bytes, count_parameters

PARAMETERS = {
    "mistral_7b": 7_241_732_096,
    "phi4_mini": 3_836_021_760,
    "smollm3_3b": 3_075_098_624,
    "gemma3_1b": 999_885_952,
}
# The tokenizer of Phi-4-mini has fewer tokens than the table has rows, Gemma 3's more.
TEXT_VOCAB = {
    "mistral_7b": 32_000,
    "phi4_mini": 200_029,
    "smollm3_3b": 128_256,
    "gemma3_1b": 262_145,
}
# Rank 16 on all linear layers: of each layer, the sum of 16 * (inputs + outputs).
LORA = {
    "mistral_7b": 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432),
    "phi4_mini": 32 * 16 * ((3072 + 5120) + 2 * 3072 + (3072 + 16384) + (8192 + 3072)),
    "smollm3_3b": 36 * 16 * (2 * 4096 + 2 * 2560 + 3 * 13056),
    "gemma3_1b": 26 * 16 * (2 * 2176 + 2 * 1408 + 3 * 8064),
}
TRAINED = {"scp": 2, "instruct": 2, "end_to_end": 2, "rerank": 1}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *itertools.product(("mistral_7b", "phi4_mini"), TRAINED),
        ("smollm3_3b", "instruct"),
        ("gemma3_1b", "end_to_end"),
    ],
)
def test_train_step_traces_at_full_size(name, stage, capsys):
    config = RunConfig(
        stage=stage,
        workdir="unused",
        backbone=f"random:{name}",
        dtype="bfloat16",
        remat="full",
        memory=MemoryConfig(doc_max_length=256, compression_rate=16),
        data=DataConfig(batch_size=32, prompt_max_length=1024, candidates=20),
        optim=OptimConfig(steps=10),
    )
    run = abstract_run(config, PRESETS[name], TEXT_VOCAB[name])
    state, metrics = jax.eval_shape(run.step, *run.arguments)
    sizes = {
        "backbone": (
            count_parameters(run.network.backbone["params"]),
            count_bytes(run.network.backbone["params"]),
        ),
        "trainable": (count_parameters(state.trainable), count_bytes(state.trainable)),
        "optimizer": (count_parameters(state.opt_state), count_bytes(state.opt_state)),
    }
    with capsys.disabled():
        shown = ", ".join(f"{k} {n:,} ({b:,} bytes)" for k, (n, b) in sizes.items())
        print(f"\n{name} {stage}: {shown}")
    assert sizes["backbone"] == (PARAMETERS[name], 2 * PARAMETERS[name])
    memory = 16 * PRESETS[name].width if stage == "scp" else 0
    trainable = TRAINED[stage] * LORA[name] + memory
    assert sizes["trainable"] == (trainable, 4 * trainable)
    # Two moments in float32, and two counters of steps.
    assert sizes["optimizer"] == (2 * trainable + 2, 8 * trainable + 8)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    backbone = run.network.backbone["params"]
    assert {x.dtype for x in jax.tree.leaves(backbone)} == {jnp.dtype(jnp.bfloat16)}
