import json
import shutil

import jax
import numpy as np
import pytest
from toy_folder import QUESTION, toy_parts, write_toy

import clara_jax
from clara_jax.convert import ModelFolder, write_model_folder
from clara_jax.errors import ClaraError
from clara_jax.testing import EOS

TEXTS = ["Ada Bell was born in Corin", "Edo Falk studied in Gemma"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("loading") / "run")


def test_everything_promised_is_there(folder):
    clara = clara_jax.load(folder, clara_jax.AnswerConfig(max_new_tokens=4))
    assert clara.config.eos_ids == (EOS,)
    vectors = clara.compress(TEXTS)
    assert vectors.shape == (2, 2, 16) and clara.reason([QUESTION]).shape == (1, 2, 16)
    given = clara.answer([QUESTION], [TEXTS])
    assert given == clara.answer_from_vectors([QUESTION], vectors[None])
    found = clara.select_and_answer([QUESTION], [TEXTS], top_k=1)
    assert found.indices.shape == (1, 1) and found.scores.shape == (1, 2)
    assert len(clara.paraphrase([TEXTS])) == 1


def test_the_compute_type_can_be_chosen(folder):
    assert clara_jax.load(folder).network.model.config.dtype == "float32"
    narrow = clara_jax.load(folder, dtype="bfloat16")
    assert str(narrow.compress(TEXTS).dtype) == "bfloat16"
    with pytest.raises(ClaraError, match="dtype is 'int4', but must be one of"):
        clara_jax.load(folder, dtype="int4")


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_the_weights_can_be_laid_out_over_a_mesh(folder, quantize):
    mesh = clara_jax.make_mesh(fsdp=2, tensor=2)
    clara = clara_jax.load(folder, quantize=quantize, mesh=mesh)
    up = clara.network.backbone["params"]["layers"]["mlp"]["up"]
    kernel = up["kernel" if quantize == "none" else "codes"]
    part = kernel.addressable_shards[0].data.shape
    assert part == (2, kernel.shape[1] // 2, kernel.shape[2] // 2)
    with jax.set_mesh(mesh):
        vectors = clara.compress(TEXTS * 4)
    alone = clara_jax.load(folder, quantize=quantize).compress(TEXTS * 4)
    np.testing.assert_allclose(vectors, alone, atol=2e-5)


@pytest.mark.slow
def test_the_backbone_can_be_quantized(folder):
    whole = clara_jax.load(folder).compress(TEXTS)
    bytes_of = {}
    for kind in ("int8", "nf4"):
        clara = clara_jax.load(folder, quantize=kind)
        layers = clara.network.backbone["params"]["layers"]
        assert all("codes" in weights for weights in layers["mlp"].values())
        bytes_of[kind] = sum(x.nbytes for x in jax.tree.leaves(layers))
        vectors = clara.compress(TEXTS)
        assert np.any(vectors != whole)
        question = clara.reason([QUESTION])
        assert question.shape == (1, 2, 16) and np.all(np.isfinite(question))
        # Merged weights are whole again, and answer alike.
        merged = clara.merge()
        params = merged.merged["generator"].backbone["params"]
        assert "kernel" in params["layers"]["mlp"]["up"]
        asked = [QUESTION], vectors[None]
        assert merged.answer_from_vectors(*asked) == clara.answer_from_vectors(*asked)
    near = clara_jax.load(folder, quantize="int8").compress(TEXTS)
    np.testing.assert_allclose(near, whole, atol=0.2)
    assert bytes_of["nf4"] < bytes_of["int8"]
    with pytest.raises(ClaraError, match="quantize is 'int4', but must be one of none"):
        clara_jax.load(folder, quantize="int4")


def _base(path, change):
    tokenizer, toy = toy_parts()
    params = jax.tree.map(change, toy.backbone["params"])
    write_model_folder(path, ModelFolder(toy.model.config, params, tokenizer))
    return str(path)


def test_another_base_is_refused(folder, tmp_path):
    other = _base(
        tmp_path / "other", lambda x: np.random.default_rng(1).normal(size=x.shape)
    )
    with pytest.raises(ClaraError, match="clara.json: was trained on another base of"):
        clara_jax.load(folder, base=other)
    # Folders of before do not know their base.
    shutil.copytree(folder, tmp_path / "old")
    path = tmp_path / "old" / "clara.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "frozen"}))
    clara = clara_jax.load(tmp_path / "old", base=other)
    assert np.any(clara.compress(TEXTS) != clara_jax.load(folder).compress(TEXTS))
    path.write_text(json.dumps({**values, "frozen": {"embed/embedding": 3}}))
    with pytest.raises(ClaraError, match="clara.json: field 'frozen' is damaged"):
        clara_jax.load(tmp_path / "old", base=other)


def test_the_same_base_in_other_types(folder, tmp_path, capsys):
    whole = clara_jax.load(folder).compress(TEXTS)
    for dtype in ("bfloat16", "float16", "float32"):
        same = _base(tmp_path / dtype, lambda x, d=dtype: np.asarray(x).astype(d))
        vectors = clara_jax.load(folder, base=same).compress(TEXTS)
        np.testing.assert_allclose(vectors, whole, atol=0.1)
        assert "note" not in capsys.readouterr().err
    scale = 1 / 8  # steps of about 4 bits
    near = _base(tmp_path / "4bits", lambda x: np.round(x / scale) * scale)
    assert clara_jax.load(folder, base=near).compress(TEXTS).any()
    text = capsys.readouterr().err
    assert text.startswith("note: ") and "base's weights differ by" in text


def test_a_base_model_cannot_answer(tmp_path):
    with pytest.raises(ClaraError, match="is a base model without CLaRa adapters"):
        clara_jax.load(write_toy(tmp_path / "base", base=True))
