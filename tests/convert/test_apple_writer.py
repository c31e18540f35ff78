import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import transformers

from clara_jax.config import LoraConfig, MemoryConfig, SelectionConfig
from clara_jax.convert import load_model, write_apple_checkpoint, write_model_folder
from clara_jax.convert.apple import ADAPTERS, LAYERS
from clara_jax.convert.names import lora_tensors
from clara_jax.convert.pth import read_pth
from clara_jax.convert.tensors import extract
from clara_jax.errors import ClaraError


def _equal(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if isinstance(value, dict):
            _equal(ours[key], value)
            continue
        assert (ours[key].shape, ours[key].dtype) == (value.shape, value.dtype)
        assert ours[key].tobytes() == value.tobytes(), key


def _names(values):
    """Keys in their order, at every depth."""
    return [(k, _names(v)) if isinstance(v, dict) else k for k, v in values.items()]


def test_oracle_checkpoints_are_written_as_they_were(oracle, tmp_path):
    """Every stage of every backbone, by way of our own folder."""
    folders = sorted(p.parent for p in oracle.glob("*/stage*/adapters.pth"))
    assert folders
    for folder in folders:
        place = tmp_path / folder.parent.name / folder.name
        write_model_folder(place / "model", load_model(folder))
        write_apple_checkpoint(place / "again", load_model(place / "model"))
        for name in (ADAPTERS, LAYERS):
            ours, theirs = read_pth(place / "again" / name), read_pth(folder / name)
            _equal(ours, theirs)
            assert _names(ours) == _names(theirs)
        ours, theirs = (
            json.loads((f / "config.json").read_text(), object_pairs_hook=list)
            for f in (place / "again", folder)
        )
        assert ours == theirs


@pytest.fixture
def clara(clara_maker, hf_values):
    """A model of each family, with more rows than its tokenizer has tokens."""
    return clara_maker({**hf_values, "vocab_size": 300})


def test_all_families_come_back(tmp_path, clara):
    write_apple_checkpoint(tmp_path / "out", clara)
    read = load_model(tmp_path / "out")
    assert read.clara is not None and read.adapters is not None
    assert read.rows is not None
    assert read.clara.original.adapter_dtype == "float32"
    assert read.clara.stage == "stage2"
    ours = dataclasses.replace(clara.clara, stage="stage2")
    assert dataclasses.replace(read.clara, original=ours.original) == ours
    _equal(read.adapters, clara.adapters)
    _equal(read.rows, clara.rows)
    _equal(read.params, clara.params)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        ADAPTERS,
        LAYERS,
        "config.json",
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "with_tables"),
    [
        ("scp", "stage1", {"decoder_adapter", "encoder_adapter"}),
        ("instruct", "stage1_2", {"decoder_adapter"}),
        ("end_to_end", "stage2", set()),
        ("rerank", "stage2_pretrain_retrieval", set()),
    ],
)
def test_stages(tmp_path, clara_maker, llama_values, ours, theirs, with_tables):
    model = clara_maker(llama_values, stage=ours)
    write_apple_checkpoint(tmp_path / "out", model, name="who/what")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["training_stage"] == theirs
    assert fields["decoder_model_name"] == "who/what"
    stored = read_pth(tmp_path / "out" / ADAPTERS)
    tables = read_pth(tmp_path / "out" / LAYERS)
    assert set(tables) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name, group in stored.items() if set(tables) <= set(group)} == (
        with_tables
    )


def test_what_the_original_has_no_field_for(tmp_path, clara_maker, llama_values):
    lora = LoraConfig(rank=2, alpha=6.0, dropout=0.0, layers=("query", "down"))
    model = clara_maker(
        llama_values,
        lora=lora,
        memory=MemoryConfig(8, 4, separator=False),
        selection=SelectionConfig(top_k=3, temperature=0.5),
    )
    write_apple_checkpoint(tmp_path / "out", model)
    read = load_model(tmp_path / "out")
    assert read.clara is not None and read.adapters is not None
    assert read.clara.memory == model.clara.memory
    assert read.clara.selection == SelectionConfig(top_k=3)
    assert read.clara.lora == LoraConfig(rank=2, alpha=4.0)
    for tensor in lora_tensors(read.config, read.clara.lora):
        array = extract(read.adapters["compressor"], tensor)
        if not lora.covers(tensor.path[-2]):
            assert not array.any()
            continue
        expected = extract(model.adapters["compressor"], tensor)
        factor = 1.5 if tensor.path[-1] == "b" else 1.0
        np.testing.assert_allclose(array, factor * expected, rtol=1e-6)


def test_dtype(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    write_apple_checkpoint(tmp_path / "out", model, "bfloat16")
    for file in (ADAPTERS, LAYERS):
        for value in read_pth(tmp_path / "out" / file).values():
            arrays = value.values() if isinstance(value, dict) else [value]
            assert {a.dtype for a in arrays} == {np.dtype(ml_dtypes.bfloat16)}
    read = load_model(tmp_path / "out")
    assert read.clara is not None
    assert read.clara.original.table_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("Llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("Mistral", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("Phi3", "o_proj qkv_proj gate_up_proj down_proj"),
    ],
)
def test_adapters_stand_in_the_order_of_the_modules(
    tmp_path, clara_maker, llama_values, family, modules
):
    torch = pytest.importorskip("torch", reason="builds the original's base")
    values = {**llama_values, "architectures": [f"{family}ForCausalLM"]}
    write_apple_checkpoint(tmp_path / "out", clara_maker(values))
    stored = read_pth(tmp_path / "out" / ADAPTERS)["decoder_adapter"]
    names = [name.split(".lora_")[0] for name in stored][::2]
    assert [name.split(".")[-1] for name in names] == 3 * modules.split()
    config = transformers.AutoConfig.for_model(
        family.lower(), **llama_values, pad_token_id=0
    )
    with torch.device("meta"):
        original = transformers.AutoModelForCausalLM.from_config(config)
    linear = [n for n, m in original.named_modules() if isinstance(m, torch.nn.Linear)]
    assert [name for name in linear if name != "lm_head"] == names


def test_torch_loads_it(tmp_path, clara_maker, llama_values):
    torch = pytest.importorskip(
        "torch", reason="reads with PyTorch: pip install torch==2.13.0"
    )
    values = {**llama_values, "tie_word_embeddings": True}
    write_apple_checkpoint(tmp_path / "out", clara_maker(values, stage="scp"))
    adapters = torch.load(tmp_path / "out" / ADAPTERS, weights_only=True)
    layers = torch.load(tmp_path / "out" / LAYERS, weights_only=True)
    (table,) = layers.values()
    assert isinstance(table, torch.nn.Parameter) and table.requires_grad
    for name in ("decoder_adapter", "encoder_adapter"):
        embedding = adapters[name]["model.embed_tokens.weight"]
        assert torch.equal(embedding, table)
        assert adapters[name]["lm_head.weight"].data_ptr() == embedding.data_ptr()


def test_refusals(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    base = dataclasses.replace(model, clara=None, adapters=None, rows=None)
    with pytest.raises(ClaraError, match="base model without CLaRa adapters"):
        write_apple_checkpoint(tmp_path / "out", base)
    model.tokenizer.init_kwargs.clear()
    model.tokenizer.name_or_path = ""
    with pytest.raises(ClaraError, match="give its hub name or path with --base-name"):
        write_apple_checkpoint(tmp_path / "out", model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ClaraError, match="full: is not empty"):
        write_apple_checkpoint(tmp_path / "full", model, name="x")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_failed_write(
    tmp_path, clara_maker, llama_values, monkeypatch
):
    model = clara_maker(llama_values)
    before = set(tmp_path.iterdir())

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for target in (
        "clara_jax.convert.pth._add",
        "clara_jax.convert.model_folder.os.rename",
        "clara_jax.convert.apple.write_json",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(ClaraError, match="out: the disk is full; free space"):
                write_apple_checkpoint(tmp_path / "out", model)
        assert set(tmp_path.iterdir()) == before
