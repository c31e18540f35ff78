import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from clara_jax.config import LoraConfig, MemoryConfig, SelectionConfig
from clara_jax.convert import (
    ClaraSettings,
    load_config,
    load_model,
    write_model_folder,
)
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer


def _equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _equal(a[key], b[key])
    else:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def base(tmp_path, llama_values, hf_writer):
    hf_writer(tmp_path / "qwen-hf", llama_values, eos=[2, 7])
    return load_model(tmp_path / "qwen-hf")


@pytest.fixture
def clara(base):
    """A model with one adapter, which need not mean anything."""
    settings = ClaraSettings(
        memory=MemoryConfig(doc_max_length=8, compression_rate=4),
        lora=LoraConfig(rank=2, layers=("query",)),
        selection=SelectionConfig(top_k=2, exclusion="exact"),
        text_vocab=len(base.tokenizer),
        stage="scp",
    )
    lora = {"a": np.ones((3, 16, 2), np.float32), "b": np.zeros((3, 2, 16), np.float32)}
    return dataclasses.replace(
        base,
        clara=settings,
        adapters={
            "compressor": {"layers": {"attention": {"query": lora}}},
            "memory": np.arange(32, dtype=np.float32).reshape(2, 16),
        },
        rows={
            "marks": np.ones((3, 16), np.float32),
            "head": np.ones((5, 16), np.float32),
        },
    )


def test_base_round_trip(tmp_path, base):
    write_model_folder(tmp_path / "new" / "model", base)
    read = load_model(tmp_path / "new" / "model")
    assert read.config == base.config == load_config(tmp_path / "new" / "model")
    assert read.eos_ids == (2, 7) and read.clara is None
    _equal(read.params, base.params)
    text = "Answer the question"
    assert read.tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    assert read.tokenizer.chat_template == base.tokenizer.chat_template
    # Rules that go by the base model's name find it, wherever the folder lies.
    assert "qwen-hf" in ClaraTokenizer(read.tokenizer, 2).name
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"model"}


def test_clara_round_trip(tmp_path, clara):
    write_model_folder(tmp_path / "model", clara)
    read = load_model(tmp_path / "model")
    assert read.clara == clara.clara
    _equal(read.adapters, clara.adapters)
    _equal(read.rows, clara.rows)
    assert set(read.backbone) == {"params", "rows"}
    cast = load_model(tmp_path / "model", "bfloat16")
    assert cast.config.param_dtype == "bfloat16"
    assert str(cast.params["final_norm"]["scale"].dtype) == "bfloat16"
    assert cast.adapters is not None
    assert cast.adapters["memory"].dtype == np.float32


def test_tokenizer_files_suit_both_transformers(tmp_path, base):
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    write_model_folder(tmp_path / "model", base)
    path = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == ["<|x|>"]
    assert not isinstance(values.get("extra_special_tokens"), list)
    read = load_model(tmp_path / "model").tokenizer
    assert len(read) == len(base.tokenizer)


@pytest.mark.parametrize("reference", ["../base", "absolute"])
def test_backbone_kept_elsewhere(tmp_path, base, clara, reference):
    write_model_folder(tmp_path / "base", base)
    if reference == "absolute":
        reference = str(tmp_path / "base")
    settings = dataclasses.replace(clara.clara, backbone=reference)
    write_model_folder(
        tmp_path / "run", dataclasses.replace(clara, clara=settings, params=None)
    )
    assert not (tmp_path / "run" / "backbone").exists()
    _equal(load_model(tmp_path / "run").params, base.params)


def test_another_base_takes_the_place_of_the_one_named(tmp_path, base, clara):
    # What it names is not there, and so is not read.
    settings = dataclasses.replace(clara.clara, backbone="../nowhere")
    model = dataclasses.replace(clara, clara=settings, params=None)
    write_model_folder(tmp_path / "run", model)
    other = jax.tree.map(lambda x: x + 1, base.params)
    write_model_folder(tmp_path / "other", dataclasses.replace(base, params=other))
    read = load_model(tmp_path / "run", "bfloat16", base=str(tmp_path / "other"))
    assert read.config.param_dtype == "bfloat16"
    _equal(read.params, jax.tree.map(lambda x: x.astype("bfloat16"), other))
    _equal(read.adapters, clara.adapters)


def test_a_swapped_backbone_is_refused(tmp_path, base, clara, capsys):
    write_model_folder(tmp_path / "run", clara)
    rng = np.random.default_rng(5)
    for name, changed in (
        ("near", lambda x: x * np.float32(1.05)),
        ("other", lambda x: rng.normal(size=x.shape).astype(x.dtype)),
    ):
        params = jax.tree.map(changed, base.params)
        write_model_folder(tmp_path / name, dataclasses.replace(base, params=params))
        shutil.rmtree(tmp_path / "run" / "backbone")
        shutil.copytree(tmp_path / name / "backbone", tmp_path / "run" / "backbone")
        if name == "near":
            load_model(tmp_path / "run")
            assert "the base's weights differ by" in capsys.readouterr().err
    with pytest.raises(ClaraError, match="another base .* not those of .*/backbone; "):
        load_model(tmp_path / "run")
    load_model(tmp_path / "run", base=str(tmp_path / "qwen-hf"))
    assert capsys.readouterr().err == ""


def test_a_base_of_another_shape_is_refused(tmp_path, base, clara):
    write_model_folder(tmp_path / "run", clara)
    wider = dataclasses.replace(base.config, mlp_dim=base.config.mlp_dim + 1)
    write_model_folder(tmp_path / "run2", clara)
    path = tmp_path / "run2" / "model.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "mlp_dim": wider.mlp_dim}))
    with pytest.raises(ClaraError, match="array .* has shape .* is needed"):
        load_model(tmp_path / "run2")
    write_model_folder(tmp_path / "base", base)
    with pytest.raises(ClaraError, match="base whose mlp_dim is .* give the right"):
        load_model(tmp_path / "run2", base=str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_vocab", -1, "field 'text_vocab' is -1, but the tokenizer has"),
        ("lora", {"rank": 3, "alpha": 6.0}, "is not of the shape that model.json"),
        ("memory", {"doc_max_length": 4, "compression_rate": 1}, "memory is not of"),
    ],
)
def test_settings_that_do_not_fit_the_arrays(tmp_path, clara, field, value, message):
    write_model_folder(tmp_path / "run", clara)
    path = tmp_path / "run" / "clara.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, field: value}))
    with pytest.raises(ClaraError, match=message):
        load_model(tmp_path / "run")


def test_adapters_that_are_too_many_or_too_few(tmp_path, clara):
    less = {k: v for k, v in clara.adapters.items() if k != "memory"}
    more = {**clara.adapters, "judge": clara.adapters["compressor"]}
    for name, adapters, why in (
        ("more", more, "judge is not expected; there must be memory, rows and some of"),
        ("less", less, "memory is missing"),
    ):
        model = dataclasses.replace(clara, adapters=adapters)
        write_model_folder(tmp_path / name, model)
        with pytest.raises(ClaraError, match=f"{name}/adapters: {why}"):
            load_model(tmp_path / name)


def test_update_of_a_run_folder(tmp_path, base, clara):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ClaraError, match="is not empty"):
        write_model_folder(run, base)
    write_model_folder(run, base, update=True)
    write_model_folder(run, clara, update=True)
    assert (run / "metrics.jsonl").read_text() == "{}\n"
    _equal(load_model(run).adapters, clara.adapters)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "qwen-hf"}


def test_nothing_is_left_of_a_failed_write(tmp_path, base, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full)
    with pytest.raises(ClaraError, match="model: the disk is full; free space"):
        write_model_folder(tmp_path / "model", base)
    assert {p.name for p in tmp_path.iterdir()} == {"qwen-hf"}


def test_a_tokenizer_that_cannot_be_written(tmp_path, base, monkeypatch):
    def full(*arguments, **options):
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(type(base.tokenizer), "save_pretrained", full)
    with pytest.raises(ClaraError, match="model: the disk is full; free space"):
        write_model_folder(tmp_path / "model", base)
    assert {p.name for p in tmp_path.iterdir()} == {"qwen-hf"}


def test_damaged_folders(tmp_path, clara):
    folder = tmp_path / "model"
    write_model_folder(folder, clara)

    def fails(pattern):
        with pytest.raises(ClaraError, match=pattern) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    def changed(name, **changes):
        path = folder / name
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | changes))
        return path.write_text, json.dumps(values)

    restore, text = changed("clara.json", stages="scp")
    fails("clara.json.stages' is unknown; did you mean 'stage'")
    restore(text)
    restore, text = changed("clara.json", backbone=".")
    fails("names itself as its backbone")
    restore(text)
    restore, text = changed("model.json", format="other")
    fails("model.json: is not of the form")
    restore(text)
    restore, text = changed("model.json", width=0)
    fails("model.width")
    restore(text)
    next((folder / "backbone").rglob("manifest.ocdbt")).write_bytes(b"x")
    fails("backbone: the saved tree is damaged")
    (folder / "adapters").rename(folder / "moved")
    (folder / "backbone").rename(folder / "moved" / "backbone")
    fails("backbone: there is no saved tree")


def test_unfinished_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ClaraError, match="has not finished"):
        load_model(tmp_path)
