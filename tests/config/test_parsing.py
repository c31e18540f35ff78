"""Mappings become settings, or one line that names the field."""

import dataclasses
import json

import ml_collections
import pytest

from clara_jax.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    RopeConfig,
    RunConfig,
    parse,
    to_dict,
)
from clara_jax.errors import ClaraError

RUN = {"stage": "scp", "workdir": "runs/x", "backbone": "random:tiny"}
MODEL = {
    "vocab_size": 32,
    "width": 8,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 2,
    "mlp_dim": 16,
}
WINDOWS = {**MODEL, "sliding_window": 4, "window_rope": {"theta": 5.0}}


def test_nested_groups_and_lists():
    run = parse(
        RunConfig,
        {**RUN, "lora": {"rank": 8, "layers": ["query"]}, "data": {"train": ["a"]}},
    )
    assert run.lora == LoraConfig(rank=8, layers=("query",))
    assert run.data == DataConfig(train=("a",))


def test_config_dict_of_the_command_line():
    values = ml_collections.ConfigDict({**RUN, "optim": {"clip_norm": 2.0}})
    assert parse(RunConfig, values.to_dict()).optim.clip_norm == 2.0


@pytest.mark.parametrize(
    ("cls", "values"),
    [(RunConfig, RUN), (ModelConfig, WINDOWS)],
)
def test_to_dict_is_the_inverse_through_json(cls, values):
    config = parse(cls, values)
    assert parse(cls, json.loads(json.dumps(to_dict(config)))) == config


def test_kinds_that_are_near_enough():
    assert parse(LoraConfig, {"alpha": 8}).alpha == 8.0
    assert parse(DataConfig, {"train": "one.jsonl"}).train == ("one.jsonl",)
    assert parse(DataConfig, {"train": ""}).train == ()
    assert parse(RunConfig, {**RUN, "lora": LoraConfig(rank=4)}).lora.rank == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stagee": "scp"}, "'stagee' is unknown; did you mean 'stage'"),
        ({"zzz": 1}, "'zzz' is unknown$"),
        ({"lora": {"rnak": 8}}, "'lora.rnak' is unknown; did you mean 'rank'"),
        ({"lora": 3}, "'lora' must be a group of fields"),
        ({"seed": "one"}, "'seed' must be int, not 'one'"),
        ({"seed": True}, "'seed' must be int, not True"),
        ({"seed": 1.5}, "'seed' must be int, not 1.5"),
        ({"mse_weight": None}, "'mse_weight' must be float"),
        ({"data": {"train": 5}}, "'data.train' must be a list, not 5"),
        ({"data": {"doc_buckets": ["a"]}}, "'data.doc_buckets' must be int"),
    ],
)
def test_refusals_name_the_field(values, message):
    with pytest.raises(ClaraError, match=message) as caught:
        parse(RunConfig, {**RUN, **values})
    assert "\n" not in str(caught.value)


def test_missing_fields_and_where_they_were_read():
    with pytest.raises(ClaraError, match="'model.json.width' is missing"):
        values = {key: value for key, value in MODEL.items() if key != "width"}
        parse(ModelConfig, values, "model.json")


def test_none_where_it_is_allowed():
    assert parse(ModelConfig, {**MODEL, "sliding_window": None}).sliding_window is None


def test_settings_are_frozen_and_hashable():
    config = parse(ModelConfig, MODEL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 9  # type: ignore[misc]
    assert len({config, parse(ModelConfig, MODEL)}) == 1
    assert config.rope == RopeConfig()
