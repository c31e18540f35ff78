"""One name for all copies of a model, another for every other model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import (
    Network,
    vector_fingerprint,
    weights_distance,
    weights_sample,
)
from clara_jax.clara.fingerprint import backbone_shape
from clara_jax.config import LoraConfig
from clara_jax.model import logical_axes, quantize_params
from clara_jax.sharding import make_mesh, tree_shardings
from clara_jax.testing import toy_network

TOY = toy_network(mlp_dim=512)  # its largest arrays are not looked at whole


def named(backbone=TOY.backbone, adapters=TOY.adapters, model=TOY.model):
    return vector_fingerprint(Network(model, backbone, adapters))


def changed(tree, *path, by=0.5):
    """`tree` with the first number of one array changed."""
    if not path:
        return tree.reshape(-1).at[0].add(by).reshape(tree.shape)
    return {**tree, path[0]: changed(tree[path[0]], *path[1:], by=by)}


def test_is_the_same_wherever_and_however_the_weights_are_kept():
    found = named()
    assert len(found) == 32 and int(found, 16)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TOY.backbone["params"])
    assert named({**TOY.backbone, "params": narrow}) == found
    host = jax.tree.map(np.asarray, (TOY.backbone, TOY.adapters))
    assert named(*host) == found
    for sizes in ({"fsdp": 8}, {"fsdp": 2, "tensor": 4}):
        mesh = make_mesh(data=1, **sizes)
        both = (TOY.backbone, TOY.adapters)
        laid = jax.device_put(both, tree_shardings(mesh, both, logical_axes))
        assert named(*laid) == found
        with jax.set_mesh(mesh):
            assert named(*laid) == found


def test_what_makes_no_vectors_does_not_count():
    adapters = changed(TOY.adapters, "reasoner", "layers", "mlp", "up", "a")
    adapters = changed(adapters, "generator", "layers", "mlp", "up", "a")
    shape = dataclasses.replace(TOY.model.config, dtype="bfloat16", remat="full")
    model = TOY.model.clone(config=shape, lora=LoraConfig(4, 8.0, 0.3))
    assert named(adapters=adapters, model=model) == named()


@pytest.mark.parametrize(
    "path",
    [
        ("compressor", "layers", "mlp", "down", "b"),
        ("compressor", "layers", "attention", "query", "a"),
        ("memory",),
    ],
)
def test_one_number_of_the_compressor_or_the_memory_counts(path):
    # Adapters are trained in float32: no change is too small.
    assert named(adapters=changed(TOY.adapters, *path, by=1e-5)) != named()


@pytest.mark.parametrize(
    "path",
    [
        ("rows", "marks"),
        ("params", "layers", "input_norm", "scale"),
        ("params", "final_norm", "scale"),
    ],
)
def test_one_number_of_the_backbone_counts(path):
    assert named(changed(TOY.backbone, *path)) != named()


def test_another_large_array_another_shape_or_scale_count():
    kernel = TOY.backbone["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.size > 4096
    layers = TOY.backbone["params"]["layers"]
    other = {**layers, "mlp": {**layers["mlp"], "up": {"kernel": kernel + 0.1}}}
    params = {**TOY.backbone["params"], "layers": other}
    assert named({**TOY.backbone, "params": params}) != named()
    more = jnp.pad(TOY.adapters["memory"], ((0, 1), (0, 0)))
    assert named(adapters={**TOY.adapters, "memory": more}) != named()
    assert named(model=TOY.model.clone(lora=LoraConfig(4, 16.0, 0.0))) != named()
    shape = dataclasses.replace(TOY.model.config, norm_eps=1e-6)
    assert named(model=TOY.model.clone(config=shape)) != named()


def test_younger_settings_rename_no_store_but_of_backbones_that_use_them():
    first = (
        "vocab_size width num_layers num_heads num_kv_heads head_dim mlp_dim norm_eps "
        "tied qkv_bias output_bias mlp_bias qk_norm fused_qkv fused_gate_up "
        "sliding_window full_layers rope"
    )
    assert list(backbone_shape(TOY)) == first.split()
    changes = ({"unrotated_layers": (1,)}, {"scaled_embeddings": True})
    shapes = [dataclasses.replace(TOY.model.config, **change) for change in changes]
    names = {named(model=TOY.model.clone(config=shape)) for shape in shapes}
    assert len({named(), *names}) == 3


def test_quantized_weights_are_other_weights():
    found = {
        named({**TOY.backbone, "params": quantize_params(TOY.backbone["params"], kind)})
        for kind in ("none", "int8", "nf4")
    }
    assert len(found) == 3


def sample(change=lambda x: x, text_vocab=TOY.model.text_vocab):
    return weights_sample(jax.tree.map(change, TOY.backbone["params"]), text_vocab)


def test_samples_know_weights_again():
    before = sample()
    assert set(before) > {"embed/embedding", "layers/mlp/up/kernel"}
    assert all(len(text) <= 172 for text in before.values())
    for same in (
        lambda x: x.astype(jnp.bfloat16),
        lambda x: x.astype(jnp.float16),
        lambda x: x.astype(jnp.float16).astype(jnp.bfloat16),
        np.asarray,
    ):
        assert weights_distance(before, sample(same)) == 0
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    params = TOY.backbone["params"]
    laid = jax.device_put(params, tree_shardings(mesh, params, logical_axes))
    assert weights_sample(laid, TOY.model.text_vocab) == before
    trained = weights_distance(before, sample(lambda x: x * 1.03))
    assert trained == pytest.approx(0.03, abs=0.01)
    flipped = weights_distance(before, sample(lambda x: x[..., ::-1]))
    assert flipped > 1
    fewer = {name: text for name, text in before.items() if name != "embed/embedding"}
    assert weights_distance(before, fewer) == np.inf
    with pytest.raises(ValueError, match="base64|padding"):
        weights_distance(before, {**before, "embed/embedding": "%"})


def test_rows_that_pad_the_vocabulary_do_not_count():
    params, few = TOY.backbone["params"], TOY.model.text_vocab - 9
    table = params["embed"]["embedding"]
    cut = {**params, "embed": {"embedding": table[: few + 2]}}
    if "head" in params:
        cut["head"] = {"kernel": params["head"]["kernel"][:, : few + 2]}
    assert weights_sample(cut, few) == weights_sample(params, few)
    assert weights_sample(params, few) != weights_sample(params, few + 5)
