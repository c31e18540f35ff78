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


def test_another_base(folder, tmp_path):
    tokenizer, toy = toy_parts()
    zeros = {**toy.backbone["params"]}
    zeros["final_norm"] = {"scale": np.zeros_like(zeros["final_norm"]["scale"])}
    base = ModelFolder(toy.model.config, zeros, tokenizer)
    write_model_folder(tmp_path / "base", base)
    clara = clara_jax.load(folder, base=str(tmp_path / "base"))
    assert not clara.compress(TEXTS).any()


def test_a_base_model_cannot_answer(tmp_path):
    with pytest.raises(ClaraError, match="is a base model without CLaRa adapters"):
        clara_jax.load(write_toy(tmp_path / "base", base=True))
