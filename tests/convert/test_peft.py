import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from clara_jax.clara import ROLES
from clara_jax.config import LoraConfig
from clara_jax.convert import (
    load_config,
    load_model,
    read_peft_adapter,
    write_peft_folder,
)
from clara_jax.convert.peft import read_peft_folder
from clara_jax.errors import ClaraError
from clara_jax.model import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPECIAL = "special_rows.safetensors"
TORCH = "compares with PyTorch: pip install torch==2.13.0"
PEFT = "compares with PEFT: pip install peft"

# PEFT asks transformers in its old words.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkp:FutureWarning")


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def _changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def clara(clara_maker, hf_values):
    """A model of each family."""
    return clara_maker(hf_values, lora=LoraConfig(rank=3, alpha=5.0))


def test_round_trip(tmp_path, clara):
    write_peft_folder(tmp_path / "out", clara)
    read = load_model(tmp_path / "out")
    assert read.clara == clara.clara
    assert read.config == clara.config == load_config(tmp_path / "out")
    _equal(read.params, clara.params)
    _equal(read.adapters, clara.adapters)
    _equal(read.rows, clara.rows)


def test_files(tmp_path, clara_maker, llama_values):
    lora = LoraConfig(rank=3, alpha=5.5, dropout=0.2, layers=("query", "down"))
    model = clara_maker(llama_values, lora=lora)
    write_peft_folder(tmp_path / "out", model, ["generator"], "bfloat16", "who/what")
    names = {str(p.relative_to(tmp_path / "out")) for p in tmp_path.rglob("out/**/*")}
    assert names == {
        *("README.md", "clara.json", "special_rows.safetensors", "generator"),
        *(f"generator/{CONFIG}", f"generator/{WEIGHTS}"),
    }
    values = json.loads((tmp_path / "out" / "generator" / CONFIG).read_text())
    assert values["target_modules"] == ["q_proj", "down_proj"]
    assert (values["r"], values["lora_alpha"], values["lora_dropout"]) == (3, 5.5, 0.2)
    assert values["base_model_name_or_path"] == "who/what"
    stored = load_file(tmp_path / "out" / "generator" / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    assert str(stored[name].dtype) == "bfloat16" and len(stored) == 2 * 2 * 3
    rows = load_file(tmp_path / "out" / "special_rows.safetensors")
    np.testing.assert_array_equal(rows["embedding"][:2], model.adapters["memory"])
    np.testing.assert_array_equal(rows["embedding"][2:], model.rows["marks"])
    np.testing.assert_array_equal(rows["head"], model.rows["head"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"ids from {len(model.tokenizer)} on" in text
    assert 'from_pretrained("who/what")' in text and '(base, "generator")' in text


def _base(folder, values):
    family = getattr(transformers, values["architectures"][0])
    return family.from_pretrained(folder, pad_token_id=0)


@pytest.mark.parametrize("role", ["compressor", "generator"])
def test_peft_gives_our_logits(tmp_path, clara, hf_values, role):
    torch = pytest.importorskip("torch", reason=TORCH)
    peft = pytest.importorskip("peft", reason=PEFT)
    write_peft_folder(tmp_path / "out", clara)
    base = _base(tmp_path / "base", hf_values)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "out" / role))
    n = clara.clara.text_vocab
    ids = np.random.default_rng(0).integers(3, n, (2, 20))
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()[..., :n]
    model = Transformer(clara.config, n, clara.clara.lora)
    params, lora = jax.device_put((clara.params, clara.adapters[role]))
    logits = model.apply({"params": params, "lora": lora}, jnp.asarray(ids))
    close = 1e-4 * np.abs(expected).max()
    assert np.abs(np.asarray(logits) - expected).max() < close
    plain = model.apply({"params": params}, jnp.asarray(ids))
    assert np.abs(np.asarray(plain) - expected).max() > 100 * close


def test_what_peft_saves_is_read(tmp_path, clara_maker, llama_values):
    pytest.importorskip("torch", reason=TORCH)
    peft = pytest.importorskip("peft", reason=PEFT)
    model = clara_maker(llama_values)
    write_peft_folder(tmp_path / "out", model)
    base = _base(tmp_path / "base", llama_values)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "out" / "compressor"))
    theirs.save_pretrained(str(tmp_path / "again"))
    tree, lora = read_peft_adapter(tmp_path / "again", model.config)
    assert lora == model.clara.lora
    _equal(tree, model.adapters["compressor"])
    # And one that PEFT has made: modules by pattern, scaled by the root of the rank.
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=r".*\.(q|up)_proj", use_rslora=True
    )
    fresh = peft.get_peft_model(_base(tmp_path / "base", llama_values), settings)
    fresh.save_pretrained(str(tmp_path / "fresh"))
    tree, lora = read_peft_adapter(tmp_path / "fresh", model.config)
    assert lora == LoraConfig(rank=4, alpha=16.0, dropout=0.0, layers=("query", "up"))
    assert tree["layers"]["mlp"]["up"]["a"].shape == (3, 16, 4)


def test_adapters_trained_further_elsewhere(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    write_peft_folder(tmp_path / "out", model)
    for role in ROLES:
        _changed(tmp_path / "out" / role / CONFIG, lora_alpha=9)
        path = tmp_path / "out" / role / WEIGHTS
        save_file({**load_file(path), **_copies(model)}, path)
    read = load_model(tmp_path / "out")
    assert read.clara is not None and read.clara.lora.alpha == 9
    assert read.clara.lora.dropout == model.clara.lora.dropout


def test_the_base_is_known_again(
    tmp_path, clara_maker, llama_values, hf_writer, capsys
):
    model = clara_maker(llama_values)
    write_peft_folder(tmp_path / "out", model)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    wide = {**llama_values, "vocab_size": 300}

    def load_on(change):
        changed = {name: change(array) for name, array in tensors.items()}
        hf_writer(tmp_path / "base", wide, changed)
        return load_model(tmp_path / "out")

    load_on(lambda x: x.astype(np.float16))
    assert capsys.readouterr().err == ""
    read = load_on(lambda x: np.round(x * 8) / 8)
    assert "note: " in capsys.readouterr().err
    with pytest.raises(ClaraError, match="clara.json: was trained on another base"):
        load_on(lambda x: x[::-1].copy())
    # What was read on a near base still knows the one of its training.
    write_peft_folder(tmp_path / "again", read, name="x")
    first, again = (
        json.loads((tmp_path / name / "clara.json").read_text())["frozen"]
        for name in ("out", "again")
    )
    assert first == again and set(first) > {"head/kernel", "final_norm/scale"}


def _copies(model, dtype=np.float32):
    """The tables with special rows, as PEFT stores them when they were resized."""
    tables = model.tables("float32")
    names = {"embed": "base_model.model.model.embed_tokens.weight"}
    names["head"] = "base_model.model.lm_head.weight"
    tables = {"head": tables["embed"], **tables}
    return {
        name: np.concatenate([*map(np.asarray, tables[key].make())]).astype(dtype)
        for key, name in names.items()
    }


def test_copies_of_the_tables(tmp_path, clara, capsys):
    write_peft_folder(tmp_path / "out", clara)
    path = tmp_path / "out" / "generator" / WEIGHTS
    stored, n = load_file(path), clara.clara.text_vocab

    def read(dtype: Any = np.float32, change=lambda name, table: table):
        copies = _copies(clara, dtype).items()
        save_file(stored | {k: change(k, np.array(v)) for k, v in copies}, path)
        return load_model(tmp_path / "out")

    def fails(pattern, change):
        for name in _copies(clara):
            with pytest.raises(ClaraError, match=pattern) as caught:
                read(change=lambda n, t, name=name: change(t) if n == name else t)
            assert f"{path}: tensor '{name}' " in str(caught.value)
            assert "\n" not in str(caught.value)

    for dtype in (np.float32, np.float16, jnp.bfloat16):
        _equal(read(dtype).params, clara.params)
    _equal(read(change=lambda _, t: t[:n]).rows, clara.rows)
    # Rows that only fill up the table belong to no token.
    read(change=lambda _, t: np.concatenate([t, np.ones((9, t.shape[1]), t.dtype)]))

    def trained(row):
        def change(table):
            table[row] += 0.5
            return table

        return change

    fails(
        "is not the base's table: it was trained, .* without modules_to_save",
        trained(n - 1),
    )
    fails(f"has other rows from {n} on than special_rows.safetensors", trained(n + 1))
    fails(r"has shape \[.*give the base that it was trained on", lambda t: t[: n - 1])
    fails(r"has shape \[", lambda t: t[:, :4].copy())
    with pytest.raises(ClaraError, match="tensor '.*weight' is not expected"):
        read_peft_adapter(path.parent, clara.config)
    save_file(stored, path)
    (tmp_path / "out" / "generator").rename(tmp_path / "out" / "default")
    assert "generator" not in load_model(tmp_path / "out").roles()
    assert "note: " in (said := capsys.readouterr().err) and "left out: default" in said


def test_a_head_that_peft_trained(tmp_path, clara_maker, llama_values):
    torch = pytest.importorskip("torch", reason=TORCH)
    peft = pytest.importorskip("peft", reason=PEFT)
    model = clara_maker(llama_values)
    write_peft_folder(tmp_path / "out", model)
    for trained in (False, True):
        base = _base(tmp_path / "base", llama_values)
        settings = peft.LoraConfig(
            r=3, lora_alpha=6, target_modules="all-linear", modules_to_save=["lm_head"]
        )
        theirs = peft.get_peft_model(base, settings)
        if trained:
            with torch.no_grad():
                theirs.get_output_embeddings().weight[5] += 1
        theirs.save_pretrained(str(tmp_path / "out" / "generator"))
        if not trained:
            assert load_model(tmp_path / "out").clara is not None
    with pytest.raises(
        ClaraError, match=r"'base_model.model.lm_head.weight' is not th"
    ):
        load_model(tmp_path / "out")


def test_refusals(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    folder = tmp_path / "out"
    write_peft_folder(folder, model)

    def fails(pattern):
        with pytest.raises(ClaraError, match=pattern) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    config = folder / "generator" / CONFIG
    text = config.read_text()
    for changes, pattern in [
        ({"use_dora": True}, "'use_dora' is True, which is not supported"),
        ({"peft_type": "IA3"}, "'peft_type' is 'IA3'"),
        ({"rank_pattern": {"q_proj": 2}}, "'rank_pattern' is"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' is True"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is"),
        ({"target_parameters": ["x"]}, "'target_parameters' is"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices' is"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens' is"),
        ({"modules_to_save": ["lm_head"]}, "has no tensor of lm_head, which"),
        ({"r": 0}, "'r' must be a whole number above 0"),
        ({"lora_alpha": None}, "'lora_alpha' is missing"),
        ({"r": 4}, r"has shape \[3, 16\], but the configuration asks for \[4"),
        ({"lora_alpha": 1}, "its rank, scale or layers are others than those of"),
    ]:
        _changed(config, **changes)
        fails(pattern)
        config.write_text(text)
    _changed(config, modules_to_save=[], trainable_token_indices={}, loftq_config={})
    assert load_model(folder).clara is not None
    weights = folder / "reasoner" / WEIGHTS
    stored = load_file(weights)
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"
    odd = {"odd": np.ones(1, np.float32)}
    save_file({k: v for k, v in stored.items() if k != name}, weights)
    fails(f"{weights}: tensor '{name}' is missing")
    save_file({**stored, **odd}, weights)
    fails("tensor 'odd' is not expected")
    save_file({"odd": odd["odd"]}, weights)
    fails("tensor 'odd' is not expected")
    weights.unlink()
    fails("adapter_model.safetensors: cannot be read")
    (folder / "reasoner" / CONFIG).unlink()
    assert set(load_model(folder).adapters or ()) == {*ROLES, "memory"} - {"reasoner"}
    save_file({"embedding": np.ones((5, 16), np.float32)}, folder / SPECIAL)
    fails("tensor 'head' is missing")
    save_file({"embedding": np.ones((4, 16), np.float32)}, folder / SPECIAL)
    fails(r"'embedding' has shape \[4, 16\], .* asks for \[5, 16\]")
    _changed(folder / "clara.json", text_vocab=7)
    fails("text_vocab is 7, but the base's tokenizer has .*--base")
    (folder / SPECIAL).unlink()
    fails("holds no model .no config.json")


def test_a_folder_without_settings(tmp_path, clara):
    with pytest.raises(ClaraError, match=r"has no clara\.json"):
        read_peft_folder(tmp_path, clara)


def test_refusals_on_writing(tmp_path, clara_maker, llama_values):
    model = clara_maker(llama_values)
    del model.adapters["reasoner"]
    with pytest.raises(ClaraError, match="has no reasoner; it has compressor, gen"):
        write_peft_folder(tmp_path / "out", model, ["reasoner"])
    base = dataclasses.replace(model, clara=None, adapters=None, rows=None)
    with pytest.raises(ClaraError, match="base model without CLaRa adapters"):
        write_peft_folder(tmp_path / "out", base)
    assert not (tmp_path / "out").exists()
