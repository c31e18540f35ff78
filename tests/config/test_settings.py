"""Each settings class refuses what it cannot mean."""

import pytest

from clara_jax.config import (
    DataConfig,
    HooksConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    RopeConfig,
    RunConfig,
    SelectionConfig,
)
from clara_jax.errors import ClaraError

MODEL = {
    "vocab_size": 32,
    "width": 8,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 2,
    "mlp_dim": 16,
}
RUN = {"stage": "lm", "workdir": "runs/x", "backbone": "random:tiny"}

STAGE_3 = {**RUN, "stage": "end_to_end"}


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (RopeConfig, {"theta": 0.0}, "'rope.theta': must be above 0"),
        (RopeConfig, {"kind": "ntk"}, "'rope.kind': is 'ntk', but must be one of"),
        (ModelConfig, {**MODEL, "width": 0}, "'model.width': must be above 0, not 0"),
        (ModelConfig, {**MODEL, "num_kv_heads": 3}, "3 does not divide num_heads 4"),
        (ModelConfig, {**MODEL, "sliding_window": 0}, "'model.sliding_window'"),
        (ModelConfig, {**MODEL, "unrotated_layers": (2,)}, "'model.unrotated_layers'"),
        (ModelConfig, {**MODEL, "window_rope": RopeConfig()}, "needs a sliding_window"),
        (
            ModelConfig,
            {**MODEL, "sliding_window": 4, "window_rope": RopeConfig(fraction=0.5)},
            "'model.window_rope': must have the fraction of rope",
        ),
        (ModelConfig, {**MODEL, "activation": "relu"}, "'model.activation': is 'relu'"),
        (ModelConfig, {**MODEL, "score_dim": -1}, "'model.score_dim'"),
        (ModelConfig, {**MODEL, "dtype": "int8"}, "'model.dtype': is 'int8'"),
        (ModelConfig, {**MODEL, "remat": "some"}, "'model.remat'"),
        (LoraConfig, {"rank": 0}, "'lora.rank'"),
        (LoraConfig, {"dropout": 1.0}, r"'lora.dropout': must be in \[0, 1\)"),
        (LoraConfig, {"layers": ()}, "'lora.layers': names no layer"),
        (
            LoraConfig,
            {"layers": ("q_proj",)},
            "is 'q_proj', but must be one of all, query",
        ),
        (MemoryConfig, {"doc_max_length": 8}, "leaves no memory token"),
        (SelectionConfig, {"top_k": 0}, "'selection.top_k'"),
        (SelectionConfig, {"temperature": -1.0}, "'selection.temperature'"),
        (SelectionConfig, {"exclusion": "none"}, "'selection.exclusion'"),
        (DataConfig, {"batch_size": 0}, "'data.batch_size'"),
        (DataConfig, {"doc_buckets": (64, 32)}, "'data.doc_buckets': must ascend"),
        (DataConfig, {"prompt_buckets": (0, 32)}, "'data.prompt_buckets'"),
        (DataConfig, {"too_long": "drop"}, "'data.too_long'"),
        (OptimConfig, {"learning_rate": float("nan")}, "'optim.learning_rate'"),
        (OptimConfig, {"steps": -1}, "'optim.steps'"),
        (OptimConfig, {"epochs": 0.0}, "'optim.epochs'"),
        (OptimConfig, {"warmup_fraction": 2.0}, "'optim.warmup_fraction'"),
        (OptimConfig, {"schedule": "linear"}, "'optim.schedule'"),
        (HooksConfig, {"keep": 0}, "'hooks.keep'"),
        (RunConfig, {**RUN, "workdir": ""}, "'workdir': is empty"),
        (RunConfig, {**RUN, "backbone": ""}, "'backbone': is empty"),
        (RunConfig, {**RUN, "mse_weight": -0.1}, "'mse_weight'"),
        (RunConfig, {**STAGE_3, "candidates": "all"}, "'candidates': is 'all', but"),
        (RunConfig, {**STAGE_3, "search": "fast"}, "'search': is 'fast', but must"),
        (
            RunConfig,
            {**RUN, "optim": OptimConfig(accumulate=3)},
            "'optim.accumulate': 3 does not divide data.batch_size 32",
        ),
    ],
)
def test_refusals(cls, values, message):
    with pytest.raises(ClaraError, match=message):
        cls(**values)


def test_memory_tokens_per_document():
    assert MemoryConfig(doc_max_length=256, compression_rate=16).num_memory == 16
    assert MemoryConfig(doc_max_length=50, compression_rate=16).num_memory == 3


def test_covered_layers():
    assert LoraConfig().covers("gate_up")
    assert LoraConfig(layers=("query", "value")).covers("value")
    assert not LoraConfig(layers=("query",)).covers("value")


def test_a_run_may_start_from_an_earlier_one():
    assert RunConfig("instruct", "runs/b", init_from="runs/a").backbone == ""
