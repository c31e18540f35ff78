"""Checkpoints of every stage written again, and adapters in the hands of others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from clara_jax.clara import Network
from clara_jax.convert import (
    load_model,
    write_apple_checkpoint,
    write_hf_folder,
    write_model_folder,
    write_peft_folder,
)
from clara_jax.convert.pth import read_pth
from clara_jax.model import Transformer

CLOSE = 1e-4
STAGES = ("stage1", "stage1_2", "stage2")
PTH = ("adapters.pth", "decoder_first_last_layers.pth")
TORCH = "compares with PyTorch: pip install torch==2.13.0"
PEFT = "compares with PEFT: pip install peft"

# PEFT asks transformers in its old words.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkp:FutureWarning")


def checkpoint(backbone_dir, stage):
    """A stage's folder, of which no file may be missing."""
    folder = backbone_dir / stage
    for name in (*PTH, "config.json"):
        assert (folder / name).is_file(), f"missing: {folder / name}"
    assert (backbone_dir / "base").is_dir(), f"missing: {backbone_dir / 'base'}"
    return folder


def load(backbone_dir, stage, dtype=""):
    folder = checkpoint(backbone_dir, stage)
    return load_model(folder, dtype, base=str(backbone_dir / "base"))


def flat(values, prefix=""):
    """Pairs of a full name and a tensor, in the order of the file."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("detour", [False, True], ids=["direct", "by our folder"])
@pytest.mark.parametrize("stage", STAGES)
def test_written_as_it_was(backbone_dir, tmp_path, stage, detour):
    """Names, their order, shapes, types and bytes; fields of the config."""
    model, folder = load(backbone_dir, stage), checkpoint(backbone_dir, stage)
    if detour:
        write_model_folder(tmp_path / "model", model)
        model = load_model(tmp_path / "model")
    write_apple_checkpoint(tmp_path / "again", model)
    for name in PTH:
        ours = list(flat(read_pth(tmp_path / "again" / name)))
        theirs = list(flat(read_pth(folder / name)))
        assert [key for key, _ in ours] == [key for key, _ in theirs]
        for (key, mine), (_, original) in zip(ours, theirs, strict=True):
            assert mine.shape == original.shape, key
            assert mine.dtype == original.dtype, key
            assert mine.tobytes() == original.tobytes(), key
    ours, theirs = (
        json.loads((place / "config.json").read_text(), object_pairs_hook=list)
        for place in (tmp_path / "again", folder)
    )
    assert ours == theirs


@pytest.mark.parametrize("stage", STAGES)
def test_read_again_by_torch_and_by_us(backbone_dir, tmp_path, stage):
    torch = pytest.importorskip("torch", reason=TORCH)
    model, folder = load(backbone_dir, stage), checkpoint(backbone_dir, stage)
    write_apple_checkpoint(tmp_path / "again", model)
    for name in PTH:
        read = [
            dict(flat(torch.load(place / name, weights_only=True)))
            for place in (tmp_path / "again", folder)
        ]
        assert list(read[0]) == list(read[1])
        for key, original in read[1].items():
            mine = read[0][key]
            assert type(mine) is type(original), key
            assert mine.requires_grad == original.requires_grad, key
            assert mine.stride() == original.stride(), key
            assert mine.dtype == original.dtype and torch.equal(mine, original), key
    again = load_model(tmp_path / "again", base=str(backbone_dir / "base"))
    assert again.clara == model.clara
    for part in ("params", "adapters", "rows"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(again, part), getattr(model, part)
        )


def text_ids(model):
    rng = np.random.default_rng(0)
    return rng.integers(0, model.clara.text_vocab, (2, 40))


def logits(model, role, ids):
    backbone, adapters = jax.device_put((model.backbone, model.adapters))
    transformer = Transformer(model.config, model.clara.text_vocab, model.clara.lora)
    variables = Network(transformer, backbone, adapters).variables(role)
    return np.asarray(transformer.apply(variables, jnp.asarray(ids)))


def base_model(backbone_dir):
    family = transformers.AutoModelForCausalLM
    return family.from_pretrained(backbone_dir / "base", dtype="float32").eval()


@pytest.mark.parametrize("stage", STAGES)
def test_peft_gives_our_logits(backbone_dir, tmp_path, stage):
    """Every role; the base has text rows only, and so have the inputs."""
    torch = pytest.importorskip("torch", reason=TORCH)
    peft = pytest.importorskip("peft", reason=PEFT)
    model = load(backbone_dir, stage, "float32")
    count, ids = model.clara.text_vocab, text_ids(model)
    roles = sorted(set(model.adapters) - {"memory"})
    assert len(roles) == (3 if stage == "stage2" else 2)
    write_peft_folder(tmp_path / "peft", model)
    for role in roles:
        folder = str(tmp_path / "peft" / role)
        theirs = peft.PeftModel.from_pretrained(base_model(backbone_dir), folder)
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
        difference = logits(model, role, ids)[..., :count] - expected[..., :count]
        assert np.linalg.norm(difference) < CLOSE * np.linalg.norm(expected), role
    again = load_model(tmp_path / "peft", "float32", base=str(backbone_dir / "base"))
    jax.tree.map(np.testing.assert_array_equal, again.adapters, model.adapters)
    jax.tree.map(np.testing.assert_array_equal, again.rows, model.rows)


def test_merged_models_give_our_logits(backbone_dir, tmp_path):
    """Special tokens included, among inputs and outputs."""
    torch = pytest.importorskip("torch", reason=TORCH)
    model = load(backbone_dir, "stage2", "float32")
    special = model.clara.text_vocab + np.arange(model.clara.memory.num_memory + 3)
    ids = np.concatenate([text_ids(model), np.stack([special, special[::-1]])], 1)
    for role in ("compressor", "reasoner", "generator"):
        write_hf_folder(tmp_path / role, model, role)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / role)
        with torch.no_grad():
            expected = theirs.eval()(input_ids=torch.tensor(ids)).logits.numpy()
        difference = logits(model, role, ids) - expected
        assert np.linalg.norm(difference) < CLOSE * np.linalg.norm(expected), role
