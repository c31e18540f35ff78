import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from clara_jax.clara import Network
from clara_jax.config import LoraConfig
from clara_jax.convert import (
    load_config,
    load_model,
    model_config_from_hf,
    write_hf_folder,
)
from clara_jax.convert.hf import read_hf_config, read_hf_params
from clara_jax.convert.names import hf_tensors
from clara_jax.convert.tensors import extract
from clara_jax.errors import ClaraError
from clara_jax.model import Transformer
from clara_jax.testing import toy_tokenizer
from clara_jax.text import ClaraTokenizer


def _fails(folder, pattern):
    with pytest.raises(ClaraError, match=pattern) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_arrive(tmp_path, hf_values, hf_writer, shards):
    tensors = hf_writer(tmp_path, hf_values, shards=shards)
    model = load_model(tmp_path)
    assert model.eos_ids == (2,)
    assert model.clara is None and model.adapters is None
    for tensor in hf_tensors(model.config):
        array = extract(model.params, tensor)
        np.testing.assert_array_equal(array, tensors[tensor.name])


def test_oracle_bases(oracle):
    folders = sorted(oracle.glob("*/base"))
    assert folders
    for folder in folders:
        model = load_model(folder)
        assert model.config == load_config(folder)
        meta = json.loads((folder.parent / "meta.json").read_text())
        assert len(model.tokenizer) == meta["mem_token_ids"][0]


def test_dtype_of_file_or_of_choice(tmp_path, llama_values, tensor_maker, hf_writer):
    config = model_config_from_hf(llama_values, "")
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensor_maker(config).items()}
    hf_writer(tmp_path, {**llama_values, "dtype": "bfloat16"}, tensors)
    stored = load_model(tmp_path)
    assert stored.params["embed"]["embedding"].dtype == ml_dtypes.bfloat16
    widened = load_model(tmp_path, "float32")
    assert widened.config.param_dtype == "float32"
    table = widened.params["embed"]["embedding"]
    assert table.dtype == np.float32
    expected = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_the_tree(tmp_path, llama_values, hf_writer, dtype):
    values = {
        **llama_values,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "vocab_size": 500,
    }
    hf_writer(tmp_path, values, shards=3)
    config = read_hf_config(tmp_path, dtype)
    read_hf_params(tmp_path, config)
    tracemalloc.start()
    params = read_hf_params(tmp_path, config)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tree = 0
    for tensor in hf_tensors(config):
        tree += int(np.prod(tensor.shape)) * (2 if dtype == "bfloat16" else 4)
    assert params["embed"]["embedding"].shape == (500, 256)
    largest = 1024 * 256 * 4
    assert size < tree + 200_000
    assert peak < tree + largest, f"peak {peak:,} for a tree of {tree:,} bytes"


def test_ignored_tensors(tmp_path, llama_values, tensor_maker, hf_writer):
    values = {**llama_values, "tie_word_embeddings": True}
    tensors = tensor_maker(model_config_from_hf(values, ""))
    extra = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    hf_writer(tmp_path, values, tensors | extra)
    assert "head" not in load_model(tmp_path).params
    extra["lm_head.weight"] = extra["lm_head.weight"] * 1.1
    hf_writer(tmp_path, values, tensors | extra)
    _fails(tmp_path, "'lm_head.weight' is not the embedding, .* tie_word_embeddings to")
    hf_writer(tmp_path, {**values, "tie_word_embeddings": False}, tensors | extra)
    assert "head" in load_model(tmp_path).params


def test_truncated_file(tmp_path, llama_values, hf_writer):
    hf_writer(tmp_path, llama_values)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) - 1):
        path.write_bytes(data[:length])
        _fails(tmp_path, "model.safetensors: .*(truncated|no readable header)")
    path.write_bytes(b"\xff" * 8 + data[8:])
    _fails(tmp_path, "truncated or not a safetensors file")


def test_wrong_tensors(tmp_path, llama_values, tensor_maker, hf_writer):
    tensors = tensor_maker(model_config_from_hf(llama_values, ""))
    norm = "model.norm.weight"

    def save(changes):
        merged = {k: v for k, v in (tensors | changes).items() if v is not None}
        save_file(merged, tmp_path / "model.safetensors")

    hf_writer(tmp_path, llama_values, tensors)
    save({norm: None})
    _fails(tmp_path, f"tensor '{norm}' is missing")
    save({norm: np.zeros(15, np.float32)})
    _fails(tmp_path, rf"model.safetensors: tensor '{norm}' has shape \[15\]")
    save({"model.odd.weight": np.zeros(1, np.float32)})
    _fails(tmp_path, "tensor 'model.odd.weight' is not expected")
    save({norm: np.zeros(16, np.int8)})
    _fails(tmp_path, f"tensor '{norm}' has type I8")


def test_shard_index(tmp_path, llama_values, hf_writer):
    hf_writer(tmp_path, llama_values, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    _fails(tmp_path, "model-00002-of-00002.safetensors: the shard is missing")
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    _fails(tmp_path, "not a plain file name")
    index.write_text("{")
    _fails(tmp_path, "is not JSON")


def test_missing_files(tmp_path, llama_values, hf_writer):
    _fails(tmp_path, "holds no model .no config.json")
    hf_writer(tmp_path, llama_values)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    _fails(tmp_path, "has no model.safetensors .found pytorch_model.bin")
    (tmp_path / "tokenizer.json").write_text("{")
    _fails(tmp_path, "tokenizer .*: cannot be read")


def test_neither_folder_nor_hub_name(tmp_path):
    _fails(tmp_path / "nothing", "there is no such folder")
    _fails("nobody/no-such-model", "hub is switched off .*; unset this, or download")


def test_text_part_of_a_model_that_reads_images(tmp_path, llama_values, capsys):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    torch.manual_seed(0)
    text = {**llama_values, "head_dim": 8, "query_pre_attn_scalar": 8}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    images = {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**text, "pad_token_id": 0, "sliding_window": 5},
        vision_config={"model_type": "siglip_vision_model", **sizes, **images},
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    read = load_model(tmp_path)
    assert " tensors for images are left out" in capsys.readouterr().err
    ids = np.random.default_rng(0).integers(3, 41, (2, 20))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids)).logits.numpy()
    params = {"params": jax.device_put(read.params)}
    logits = Transformer(read.config, 41).apply(params, jnp.asarray(ids))
    assert np.abs(np.asarray(logits) - expected).max() < 1e-4 * np.abs(expected).max()


LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
ROPES = {
    "llama untied": {"architectures": ["LlamaForCausalLM"]},
    "llama linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "qwen2 mixed windows": {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "phi4 long": {
        "architectures": ["Phi3ForCausalLM"],
        "rope_scaling": {"type": "longrope", **LONG},
        "original_max_position_embeddings": 8,
        "tie_word_embeddings": True,
    },
    "phi4 short": {
        "architectures": ["Phi3ForCausalLM"],
        "partial_rotary_factor": 0.5,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.5],
            "long_factor": [2.0],
        },
        "original_max_position_embeddings": 64,
    },
}


def _theirs(folder, ids):
    torch = pytest.importorskip(
        "torch", reason="compares with PyTorch: pip install torch==2.13.0"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)).logits.numpy()


def _ours(model, role, ids):
    backbone, adapters = jax.device_put((model.backbone, model.adapters))
    clara = model.clara
    transformer = Transformer(model.config, clara.text_vocab, clara.lora)
    variables = Network(transformer, backbone, adapters).variables(role)
    return np.asarray(transformer.apply(variables, jnp.asarray(ids)))


def _same_logits(model, folder, role):
    """Text and special tokens, as ours, theirs, and ours of the folder."""
    count = model.clara.text_vocab + model.clara.memory.num_memory + 3
    ids = np.random.default_rng(0).integers(3, count, (2, 20))
    ids[:, ::4] = np.arange(count - 5, count)
    expected = _ours(model, role, ids)
    assert expected.shape == (2, 20, count)
    close = 1e-4 * np.abs(expected).max()
    assert np.abs(_theirs(folder, ids) - expected).max() < close
    read = load_model(folder)
    transformer = Transformer(read.config, count)
    logits = transformer.apply(
        {"params": jax.device_put(read.params)}, jnp.asarray(ids)
    )
    assert np.abs(np.asarray(logits) - expected).max() < close


@pytest.mark.parametrize("role", ["generator", "reasoner"])
def test_families(tmp_path, clara_maker, hf_values, role):
    model = clara_maker(hf_values)
    write_hf_folder(tmp_path / "out", model, role)
    _same_logits(model, tmp_path / "out", role)


@pytest.mark.parametrize("name", ROPES)
def test_ropes(tmp_path, clara_maker, llama_values, name):
    lora = LoraConfig(rank=2, alpha=3.0, layers=("query", "query_key_value", "down"))
    model = clara_maker({**llama_values, **ROPES[name]}, lora=lora)
    write_hf_folder(tmp_path / "out", model, "compressor")
    _same_logits(model, tmp_path / "out", "compressor")


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_without_a_row_share_the_last(tmp_path, clara_maker, llama_values, tied):
    model = clara_maker({**llama_values, "tie_word_embeddings": tied})
    rows = model.clara.text_vocab - 1
    params, config = dict(model.params), model.config
    params["embed"] = {"embedding": params["embed"]["embedding"][:rows]}
    if not tied:
        params["head"] = {"kernel": params["head"]["kernel"][:, :rows]}
    config = dataclasses.replace(config, vocab_size=rows)
    model = dataclasses.replace(model, params=params, config=config)
    write_hf_folder(tmp_path / "out", model, "generator")
    _same_logits(model, tmp_path / "out", "generator")


def test_oracle_checkpoints(oracle, tmp_path):
    """A padded vocabulary shrinks to the tokenizer's length, as in the original."""
    folders = sorted(oracle.glob("*/stage2"))
    assert folders
    for folder in folders:
        meta = json.loads((folder.parent / "meta.json").read_text())
        model = load_model(folder, "float32")
        out = tmp_path / folder.parent.name
        write_hf_folder(out, model, "generator")
        _same_logits(model, out, "generator")
        values = json.loads((out / "config.json").read_text())
        assert values["vocab_size"] == meta["resized_vocab"]
        base = json.loads((folder.parent / "base" / "config.json").read_text())
        assert values["architectures"] == base["architectures"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        assert len(tokenizer) == meta["resized_vocab"]
        names = [f"<MEM{i}>" for i in range(meta["n_mem_tokens"])]
        assert tokenizer.convert_tokens_to_ids(names) == meta["mem_token_ids"]
        marks = tokenizer.convert_tokens_to_ids(["<AE>", "<ENC>", "<SEP>"])
        assert marks == [meta["ae_id"], meta["enc_id"], meta["sep_id"]]


def test_tokenizer(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    write_hf_folder(tmp_path / "out", model, "generator")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = ClaraTokenizer(model.tokenizer, 2)
    text = f"Answer {ours.slots(2)} the question"
    spelled = "Answer <MEM0><MEM1><SEP><MEM0><MEM1><SEP> the question"
    assert tokenizer.encode(spelled, add_special_tokens=False) == ours.encode(text)
    assert tokenizer.decode([9, ours.ae_id], skip_special_tokens=True) == "Answer"
    assert tokenizer.chat_template == model.tokenizer.chat_template
    values = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert values == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert load_model(tmp_path / "out").eos_ids == model.eos_ids
    # The model itself keeps its tokenizer.
    assert len(model.tokenizer) == model.clara.text_vocab


def test_base_model(tmp_path, hf_values, hf_writer):
    tensors = hf_writer(tmp_path / "base", hf_values, eos=[2, 7])
    write_hf_folder(tmp_path / "out", load_model(tmp_path / "base"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(stored[name], array)
    read = load_model(tmp_path / "out")
    assert read.config == load_model(tmp_path / "base").config
    assert read.eos_ids == (2, 7)


def test_merged_in_float32_and_cast_once(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    write_hf_folder(tmp_path / "out", model, "generator", "bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {a.dtype for a in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["torch_dtype"] == "bfloat16"
    lora = model.adapters["generator"]["layers"]["mlp"]["up"]
    kernel = model.params["layers"]["mlp"]["up"]["kernel"][1]
    merged = (kernel + 2 * lora["a"][1] @ lora["b"][1]).T
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(stored[name], merged.astype(ml_dtypes.bfloat16))


def test_shards(tmp_path, clara_maker, llama_values, monkeypatch):
    model = clara_maker(llama_values)
    write_hf_folder(tmp_path / "one", model, "generator")
    monkeypatch.setattr("clara_jax.convert.tensors.SHARD_BYTES", 12_000)
    write_hf_folder(tmp_path / "many", model, "generator")
    whole = load_file(tmp_path / "one" / "model.safetensors")
    text = (tmp_path / "many" / "model.safetensors.index.json").read_text()
    index = json.loads(text)
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in whole.values())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    count = len(files)
    assert count > 2 and files[0].name == f"model-00001-of-{count:05}.safetensors"
    parts = {path.name: load_file(path) for path in files}
    assert {n: f for f, part in parts.items() for n in part} == index["weight_map"]
    for part in parts.values():
        assert len(part) == 1 or sum(a.nbytes for a in part.values()) <= 12_000
    one, many = load_model(tmp_path / "one"), load_model(tmp_path / "many")
    for tensor in hf_tensors(one.config):
        array = extract(many.params, tensor)
        np.testing.assert_array_equal(array, extract(one.params, tensor))
    _same_logits(model, tmp_path / "many", "generator")


def test_refusals(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    with pytest.raises(ClaraError, match="choose --role out of compressor, gen"):
        write_hf_folder(tmp_path / "out", model)
    del model.adapters["reasoner"]
    with pytest.raises(ClaraError, match="has no reasoner"):
        write_hf_folder(tmp_path / "out", model, "reasoner")
    base = dataclasses.replace(model, clara=None, adapters=None, rows=None)
    with pytest.raises(ClaraError, match="base model without CLaRa adapters"):
        write_hf_folder(tmp_path / "out", base, "generator")
    model.tokenizer.add_tokens(["<MEM0>"])
    with pytest.raises(ClaraError, match="gives <MEM0> the id .* instead of"):
        settings = dataclasses.replace(
            model.clara, text_vocab=model.clara.text_vocab + 1
        )
        write_hf_folder(
            tmp_path / "out", dataclasses.replace(model, clara=settings), "generator"
        )
    assert not (tmp_path / "out").exists()
