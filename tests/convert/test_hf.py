import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from clara_jax.convert import load_config, load_model, model_config_from_hf
from clara_jax.convert.hf import read_hf_config, read_hf_params
from clara_jax.convert.names import hf_tensors
from clara_jax.convert.tensors import extract
from clara_jax.errors import ClaraError


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
    _fails("nobody/no-such-model", "hub did not give it.*; check the name")
