"""Kernels in int8 and nf4: their numbers, bytes and slopes, and what is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.model import (
    count,
    dequantize_params,
    logical_axes,
    merge_lora,
    quantize_params,
)
from clara_jax.model.param_axes import gathered_axes
from clara_jax.model.quantized import quantized_product
from clara_jax.sharding import make_mesh, tree_shardings
from clara_jax.testing import toy_network

KINDS = ("int8", "nf4")


def stack(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (0.02 * rng.normal(size=shape)).astype(np.float32)


def as_params(kernel):
    return {"embed": {}, "layers": {"mlp": {"gate": {"kernel": kernel}}}}


def stored(kernel, kind):
    return quantize_params(as_params(kernel), kind)["layers"]["mlp"]["gate"]


def restored(kernel, kind):
    whole = dequantize_params(quantize_params(as_params(kernel), kind), "float32")
    return whole["layers"]["mlp"]["gate"]["kernel"]


def test_numbers_are_those_of_qwix():
    qwix = pytest.importorskip("qwix")
    kernel = stack(1, 512, 256)
    for kind, options in (
        ("int8", {"channelwise_axes": (1,)}),
        ("nf4", {"channelwise_axes": (1,), "tiled_axes": {0: 64}}),
    ):
        qtype = jnp.int8 if kind == "int8" else kind
        theirs = qwix.quantize(jnp.asarray(kernel[0]), qtype, **options)
        widened = np.asarray(qwix.dequantize(theirs))
        ours = restored(kernel, kind)[0]
        steps = np.repeat(theirs.scale, 512 // theirs.scale.shape[0], axis=0)
        if kind == "int8":
            # Their scale is half a step in 127 finer.
            assert np.max(np.abs(ours - kernel[0]) / steps) < 0.51
            assert np.max(np.abs(ours - widened) / steps) < 1.01
        else:
            # Our scales are rounded to bfloat16: few codes change sides.
            codes = np.asarray(stored(kernel, kind)["codes"][0]).reshape(8, 32, 256)
            codes = np.concatenate((codes & 15, codes >> 4), 1).reshape(512, 256)
            assert np.mean(codes != np.asarray(theirs.qvalue, np.uint8)) < 0.01
        error, other = (np.std(x - kernel[0]) for x in (ours, widened))
        assert error < 1.01 * other


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_twice_is_quantized_once(kind):
    kernel = stack(2, 128, 16)
    kernel[0, :, 3] = 0
    once = restored(kernel, kind)
    assert once.shape == kernel.shape and not once[0, :, 3].any()
    again = stored(once, kind)
    for key, value in stored(kernel, kind).items():
        np.testing.assert_allclose(
            np.asarray(again[key], np.float32),
            np.asarray(value, np.float32),
            rtol=1e-6,
            err_msg=key,
        )
    noise = np.std(once - kernel) / np.std(kernel)
    assert noise < {"int8": 0.008, "nf4": 0.1}[kind], noise


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_layers_kernels_change(kind):
    toy = toy_network(tied=False, qkv_bias=True)
    params = toy.backbone["params"]
    found = quantize_params(params, kind)
    assert found["embed"] is params["embed"] and found["head"] is params["head"]
    query = found["layers"]["attention"]["query"]
    assert query["bias"] is params["layers"]["attention"]["query"]["bias"]
    assert set(query) == {"bias", "codes", "scales"}
    assert set(params["layers"]["attention"]["query"]) == {"bias", "kernel"}
    shapes = jax.eval_shape(lambda p: quantize_params(p, kind), params)
    of_host = quantize_params(jax.device_get(params), kind)
    for tree in (shapes, of_host):
        assert jax.tree.map(_form, tree) == jax.tree.map(_form, found)
    assert isinstance(of_host["layers"]["mlp"]["up"]["codes"], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, of_host, found)
    assert quantize_params(params, "none") is params
    assert jax.tree.structure(
        dequantize_params(found, "float32")
    ) == jax.tree.structure(params)


def _form(x):
    return x.shape, jnp.dtype(x.dtype)


def test_bytes_on_the_device_are_what_is_said():
    kernel = stack(3, 256, 128)
    sizes = {}
    for kind in KINDS:
        weights = jax.device_put(stored(kernel, kind))
        sizes[kind] = count(weights)[1]
        held = [x.addressable_shards[0].data for x in jax.tree.leaves(weights)]
        assert sum(x.on_device_size_in_bytes() for x in held) == sizes[kind]
    assert sizes["int8"] == kernel.size + 4 * 3 * 128
    assert sizes["nf4"] == kernel.size // 2 + 2 * kernel.size // 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_product_and_slope_are_those_of_the_widened_kernel(kind, dtype):
    kernel = stack(1, 192, 48)
    layer = jax.tree.map(lambda x: jnp.asarray(x[0]), stored(kernel, kind))
    wide = jnp.asarray(restored(kernel, kind)[0])
    x = jnp.asarray(stack(3, 5, 192, seed=1) * 50, dtype)

    def ours(x):
        y = quantized_product(x, layer["codes"], layer["scales"])
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    def plain(x):
        y = x.astype(jnp.float32) @ wide
        return jnp.sum(jnp.sin(y)), y

    slope, y = jax.jit(jax.grad(ours, has_aux=True))(x)
    expected_slope, expected = jax.jit(jax.grad(plain, has_aux=True))(x)
    assert y.dtype == slope.dtype == jnp.dtype(dtype)
    tolerance = 2e-6 if dtype == "float32" else 2e-2
    for found, want in ((y, expected), (slope, expected_slope)):
        found, want = (np.asarray(v, np.float32) for v in (found, want))
        np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max())


@functools.cache
def bytes_of_a_slope(kind, remat):
    """Of the layers as stored, and what the compiled gradient takes."""
    toy = toy_network(remat=remat, width=128, mlp_dim=512, num_layers=8, head_dim=32)
    params = quantize_params(toy.backbone["params"], kind)
    ids = jnp.ones((1, 4), jnp.int32)

    def loss(lora, params):
        return jnp.mean(toy.model.apply({"params": params, "lora": lora}, ids) ** 2)

    program = jax.jit(jax.grad(loss)).lower(toy.adapters["generator"], params).compile()
    memory = program.memory_analysis()
    taken = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return count(params["layers"])[1], *taken


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_whole_copy_of_the_layers_is_ever_alive(kind, remat):
    layers, arguments, temporary = bytes_of_a_slope("none", remat)
    stored_layers, stored_arguments, stored_temporary = bytes_of_a_slope(kind, remat)
    saved = layers - stored_layers
    assert saved > (0.7 if kind == "int8" else 0.8) * layers
    assert stored_arguments <= arguments - saved
    # One of the eight layers may be widened at a time.
    assert stored_temporary < min(temporary + layers / 8, layers / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_biases_and_fused_layers_reads_it(kind):
    toy = toy_network(fused_qkv=True, fused_gate_up=True, qkv_bias=True)
    params, lora = toy.backbone["params"], toy.adapters["generator"]
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)
    found = quantize_params(params, kind)
    same = dequantize_params(found, "float32")

    @jax.jit
    def logits(params, **lora):
        return toy.model.apply({"params": params, **lora}, ids)

    expected = logits(same, lora=lora)
    np.testing.assert_allclose(logits(found, lora=lora), expected, atol=2e-5)
    merged = merge_lora(toy.model.lora, found, lora)
    np.testing.assert_allclose(logits(merged), expected, atol=1e-4)
    gate = merged["layers"]["mlp"]["gate_up"]
    assert set(gate) == {"kernel"} and gate["kernel"].dtype == jnp.float32
    assert float(jnp.max(jnp.abs(expected - logits(params, lora=lora)))) > 1e-3


def test_groups_divide_the_inputs_or_are_refused():
    for inputs, group in ((24, 24), (128, 64), (80, 40), (66, 22)):
        weights = stored(stack(1, inputs, 8), "nf4")
        assert weights["scales"].shape == (1, inputs // group, 8), inputs
        assert weights["codes"].shape == (1, inputs // 2, 8), inputs
    for inputs in (61, 2 * 61):
        with pytest.raises(ClaraError, match="inputs of layer 'gate'.*take int8"):
            stored(stack(1, inputs, 8), "nf4")
    assert stored(stack(1, 61, 8), "int8")["codes"].shape == (1, 61, 8)
    with pytest.raises(ClaraError, match="quantize is 'int4', but must be one of none"):
        stored(stack(1, 64, 8), "int4")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_on_a_mesh_stay_on_it(kind):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = toy_network(width=128, mlp_dim=256).backbone["params"]
    alone = quantize_params(params, kind)
    spread = jax.device_put(params, tree_shardings(mesh, params, logical_axes))
    found = quantize_params(spread, kind)
    assert jax.tree.map(lambda x: x.sharding, found) == tree_shardings(
        mesh, found, logical_axes
    )
    jax.tree.map(np.testing.assert_array_equal, found, alone)
    gate = found["layers"]["mlp"]["gate"]
    shards = {x.data.nbytes for x in gate["codes"].addressable_shards}
    assert shards == {gate["codes"].nbytes // 4}
    wide = dequantize_params(found, "float32")
    assert jax.tree.map(lambda x: x.sharding, wide) == tree_shardings(
        mesh, wide, logical_axes
    )


def test_axes_of_codes_and_scales():
    down = ("params", "layers", "mlp", "down")
    for entry in ("kernel", "codes", "scales"):
        assert logical_axes((*down, entry), 3) == ("layers", "mlp", "width")
    assert gathered_axes("down") == ("mlp", None)
    assert gathered_axes("query") == (None, "heads")
    assert gathered_axes(None) == gathered_axes("other") == (None, None)
