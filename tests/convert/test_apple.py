import json
import shutil

import numpy as np
import pytest

from clara_jax.config import LoraConfig
from clara_jax.convert import load_config, load_model
from clara_jax.convert.apple import ROLES
from clara_jax.convert.names import lora_tensors
from clara_jax.convert.pth import read_pth
from clara_jax.convert.tensors import extract
from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer

torch = pytest.importorskip("torch", reason="writes checkpoints with PyTorch")


def _parts(model):
    """Settings, adapters and rows, none of which may be missing."""
    assert model.clara is not None
    assert model.adapters is not None and model.rows is not None
    return model.clara, model.adapters, model.rows


def _settings(**changes):
    return {
        "compr_model_name": None,
        "compr_rate": 4,
        "decoder_model_name": "base",
        "different_mem_tokens": True,
        "doc_max_length": 9,
        "generation_top_k": 2,
        "lora": True,
        "lora_r": 3,
        "sep": True,
        "training_stage": "stage2",
        **changes,
    }


def _adapter(config, lora, seed, **extra):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        t.name: torch.randn(*t.shape, generator=generator)
        for t in lora_tensors(config, lora)
    }
    return tensors | extra


def _write(folder, model, adapters, changes=None, layers=None):
    """A checkpoint as the original writes it, on top of the base `model`."""
    folder.mkdir(exist_ok=True)
    settings = _settings(**(changes or {}))
    (folder / "config.json").write_text(json.dumps(settings))
    n, special = len(model.tokenizer), 9 // 4 + 3
    config, rng = model.config, np.random.default_rng(1)

    def table(rows):
        new = rng.normal(size=(special, config.width)).astype(np.float32)
        return torch.tensor(np.concatenate([rows[:n], new]))

    tables = {"model.embed_tokens.weight": table(model.params["embed"]["embedding"])}
    if not config.tied:
        tables["lm_head.weight"] = table(model.params["head"]["kernel"].T)
    tables |= layers or {}
    tables = {name: value for name, value in tables.items() if value is not None}
    lora = LoraConfig(rank=3)
    if not isinstance(adapters, dict):
        adapters = {
            name: _adapter(config, lora, seed, **tables)
            for seed, name in enumerate(adapters)
        }
    torch.save(adapters, folder / "adapters.pth")
    torch.save(tables, folder / "decoder_first_last_layers.pth")
    return adapters, tables


@pytest.fixture
def base(tmp_path, hf_values, hf_writer):
    tokens = 300  # more rows than the tokenizer has: a padded vocabulary
    hf_writer(tmp_path / "base", {**hf_values, "vocab_size": tokens})
    return load_model(tmp_path / "base")


@pytest.fixture
def llama(tmp_path, llama_values, hf_writer):
    hf_writer(tmp_path / "base", {**llama_values, "vocab_size": 300})
    return load_model(tmp_path / "base")


@pytest.mark.parametrize("roles", [["encoder_adapter", "decoder_adapter"], [*ROLES]])
def test_all_families(tmp_path, base, roles):
    adapters, tables = _write(tmp_path / "stage", base, roles)
    model = load_model(tmp_path / "stage")
    assert model.config == base.config == load_config(tmp_path / "stage")
    clara, ours, rows = _parts(model)
    n = len(base.tokenizer)
    assert (clara.text_vocab, clara.memory.num_memory, clara.stage) == (n, 2, "stage2")
    assert (clara.lora.rank, clara.lora.alpha, clara.lora.dropout) == (3, 6, 0.1)
    assert clara.selection.top_k == 2 and clara.memory.separator
    assert set(ours) == {"memory", *(ROLES[name] for name in roles)}
    for name in roles:
        for tensor in lora_tensors(base.config, clara.lora):
            array = extract(ours[ROLES[name]], tensor)
            np.testing.assert_array_equal(array, adapters[name][tensor.name].numpy())
    embedding = tables["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(ours["memory"], embedding[n : n + 2])
    np.testing.assert_array_equal(rows["marks"], embedding[n + 2 :])
    if base.config.tied:
        assert "head" not in rows
    else:
        head = tables["lm_head.weight"].numpy()
        np.testing.assert_array_equal(rows["head"], head[n:])
    table = model.params["embed"]["embedding"]
    np.testing.assert_array_equal(table, base.params["embed"]["embedding"])
    assert ClaraTokenizer(model.tokenizer, 2).name == "base"


def test_oracle_checkpoints(oracle):
    """Every stage of every backbone: adapters, rows, settings, untouched base."""
    folders = sorted(p.parent for p in oracle.glob("*/stage*/adapters.pth"))
    assert folders
    for folder in folders:
        meta = json.loads((folder.parent / "meta.json").read_text())
        base, model = load_model(folder.parent / "base"), load_model(folder)
        clara, ours, special = _parts(model)
        n, m = meta["mem_token_ids"][0], meta["n_mem_tokens"]
        assert (clara.text_vocab, clara.memory.num_memory) == (n, m)
        assert clara.lora.rank == meta["lora_r"]
        stored = read_pth(folder / "adapters.pth")
        assert {"memory", *(ROLES[name] for name in stored)} == set(ours)
        for name, group in stored.items():
            for tensor in lora_tensors(base.config, clara.lora):
                array = extract(ours[ROLES[name]], tensor)
                expected = group[tensor.name].astype(np.float32)
                np.testing.assert_array_equal(array, expected)
        layers = read_pth(folder / "decoder_first_last_layers.pth")
        embedding = layers["model.embed_tokens.weight"].astype(np.float32)
        assert len(embedding) == meta["resized_vocab"]
        rows = [ours["memory"], special["marks"]]
        np.testing.assert_array_equal(np.concatenate(rows), embedding[n:])
        ids = [*meta["mem_token_ids"], meta["ae_id"], meta["enc_id"], meta["sep_id"]]
        assert ids == list(range(n, n + m + 3))
        # The keys that PEFT adds hold the same table; leaving them out loses nothing.
        for group in stored.values():
            if "model.embed_tokens.weight" in group:
                extra = group["model.embed_tokens.weight"].astype(np.float32)
                np.testing.assert_array_equal(extra, embedding)
        for key in base.params:
            if key != "layers":
                (name,) = base.params[key]
                np.testing.assert_array_equal(
                    model.params[key][name], base.params[key][name]
                )


def test_where_the_base_is_looked_for(tmp_path, llama, monkeypatch):
    deep = tmp_path / "runs" / "a"
    deep.mkdir(parents=True)
    _write(deep / "stage", llama, ["encoder_adapter"])
    assert load_model(deep / "stage").config == llama.config
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ClaraError, match="config.json: names a base .* --base$"):
        load_model(deep / "stage", form="apple")
    moved = load_model(deep / "stage", base=str(tmp_path / "moved"))
    assert moved.config == llama.config
    with pytest.raises(ClaraError, match="holds adapters itself, not a base"):
        load_model(deep / "stage", base=str(deep / "stage"))
    with pytest.raises(ClaraError, match="no adapters.pth, so it is not of"):
        load_model(tmp_path / "moved", form="apple")


def test_trained_text_rows_replace_the_bases(tmp_path, llama, capsys):
    n = len(llama.tokenizer)
    rows = np.array(llama.params["embed"]["embedding"][: n + 5])
    rows[7] *= 1.25
    changed = {"model.embed_tokens.weight": torch.tensor(rows)}
    _write(tmp_path / "stage", llama, ["encoder_adapter"], layers=changed)
    table = load_model(tmp_path / "stage").params["embed"]["embedding"]
    said = capsys.readouterr().err
    assert said.startswith("note: ") and f"in 1 of {n} tokens; theirs are taken" in said
    np.testing.assert_array_equal(table[:n], rows[:n])
    np.testing.assert_array_equal(table[n:], llama.params["embed"]["embedding"][n:])


def test_tables_beside_the_adapters_must_be_copies(tmp_path, base):
    _, tables = _write(tmp_path / "stage", base, ["encoder_adapter"])
    path = tmp_path / "stage" / "adapters.pth"
    head = tables.get("lm_head.weight", tables["model.embed_tokens.weight"])
    copies = {**tables, "lm_head.weight": head}
    lora = _adapter(base.config, LoraConfig(rank=3), 0)

    def read(copies):
        torch.save({"encoder_adapter": lora | copies}, path)
        return load_model(tmp_path / "stage")

    for dtype in (torch.float32, torch.bfloat16):
        read({name: table.to(dtype) for name, table in copies.items()})
    for name, table in copies.items():
        for other in (table * 1.1, table[1:]):
            with pytest.raises(ClaraError, match=f"encoder_adapter: '{name}' is not"):
                read({**copies, name: other})


def test_subset_of_layers(tmp_path, llama):
    lora = LoraConfig(rank=3, layers=("query", "value"))
    adapters = {"encoder_adapter": _adapter(llama.config, lora, 0)}
    _write(tmp_path / "stage", llama, adapters)
    model = load_model(tmp_path / "stage")
    clara, ours, _ = _parts(model)
    assert clara.lora.layers == ("query", "value")
    assert set(ours["compressor"]["layers"]) == {"attention"}


def test_refusals(tmp_path, llama):
    folder = tmp_path / "stage"

    def fails(pattern, adapters=("encoder_adapter",), changes=None, layers=None):
        _write(folder, llama, adapters, changes, layers)
        with pytest.raises(ClaraError, match=pattern) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    def bent(**extra):
        adapter = _adapter(llama.config, LoraConfig(rank=3), 0) | extra
        adapter = {key: value for key, value in adapter.items() if value is not None}
        return {"encoder_adapter": adapter}

    first = "model.layers.0.self_attn.q_proj.lora_A.weight"
    fails("adapter 'odd' is unknown", adapters={"odd": {}})
    fails("holds no adapter", adapters={})
    fails(
        "'model.odd.lora_A.weight' is not expected",
        adapters=bent(**{"model.odd.lora_A.weight": torch.ones(1)}),
    )
    fails(f"'{first}' is missing", adapters=bent(**{first: None}))
    fails(f"'{first}' has shape", adapters=bent(**{first: torch.ones(4, 16)}))
    fails(f"'{first}' is not a tensor", adapters=bent(**{first: 3}))
    fails(
        r"has shape \[3, 16\], but the configuration asks for \[4",
        changes={"lora_r": 4},
    )
    fails("has shape .* but .* is needed: the base", changes={"doc_max_length": 30})
    fails("'compr_rate' must be a whole number", changes={"compr_rate": None})
    fails("'compr_model_name' is 'x', which is not", changes={"compr_model_name": "x"})
    fails("compression_rate", changes={"compr_rate": 99})
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    fails(f"'{head}' is missing", layers={head: None})
    fails("'odd' is not expected", layers={"odd": torch.ones(1)})
    noise = torch.randn(len(llama.tokenizer) + 5, 16)
    fails("differs from the base model's by .*--base", layers={embedding: noise})
    (folder / "decoder_first_last_layers.pth").unlink()
    with pytest.raises(ClaraError, match="layers.pth: cannot be read"):
        load_model(folder)
