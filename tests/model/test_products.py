"""Attention in blocks and half-precision products against their plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.model.attention import causal_attention
from clara_jax.model.layers import Linear
from clara_jax.testing import toy_network


@pytest.mark.parametrize("length", [1, 127, 200, 275, 600])
@pytest.mark.parametrize("window", [None, 1, 50, 300])
def test_blocks_give_what_the_whole_gives(length, window):
    keys = jax.random.split(jax.random.key(length), 3)
    query = jax.random.normal(keys[0], (2, length, 4, 8))
    key, value = (jax.random.normal(k, (2, length, 2, 8)) for k in keys[1:])
    near = {} if window is None else {"local_window_size": (window - 1, 0)}
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=True, **near)
    whole = jax.jit(plain)(query, key, value)
    found = jax.jit(causal_attention, static_argnums=3)(query, key, value, window)
    np.testing.assert_allclose(found, whole, atol=2e-6)


def test_later_keys_have_no_slope():
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(k, (1, 300, 2, 8)) for k in keys)

    def early(key, value):
        return jnp.sum(causal_attention(query, key, value)[:, :150])

    for slope in jax.jit(jax.grad(early, (0, 1)))(key, value):
        assert not jnp.any(slope[:, 150:]) and jnp.all(jnp.any(slope[:, :149], axis=3))


def test_half_precision_layers_round_once_and_have_the_plain_slopes():
    rng = np.random.default_rng(0)
    kernel, a, b = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
        for shape in ((96, 64), (96, 4), (4, 64))
    )
    x = jnp.asarray(rng.normal(size=(3, 5, 96)), jnp.bfloat16)

    def run(x, lora, dtype):
        layer = Linear(64, dtype, "float32", rank=4, scale=2.0)
        y = layer.apply({"params": {"kernel": kernel}, "lora": lora}, x.astype(dtype))
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    lora = {"a": a, "b": b}
    slopes, outputs = {}, {}
    for dtype in ("float32", "bfloat16"):
        slope = jax.jit(jax.grad(run, (0, 1), has_aux=True), static_argnums=2)
        slopes[dtype], outputs[dtype] = slope(x, lora, dtype)
    assert outputs["bfloat16"].dtype == slopes["bfloat16"][0].dtype == jnp.bfloat16
    bare = Linear(64, "bfloat16", "float32").apply({"params": {"kernel": kernel}}, x)
    exact = (x.astype(jnp.float32) @ kernel).astype(jnp.bfloat16)
    # Sums in another order may fall on the other side of a rounding edge.
    assert np.mean(np.asarray(bare != exact)) < 0.01
    for rounded, plain in zip(
        jax.tree.leaves(slopes["bfloat16"]),
        jax.tree.leaves(slopes["float32"]),
        strict=True,
    ):
        rounded, plain = (np.asarray(s, np.float64).ravel() for s in (rounded, plain))
        cosine = rounded @ plain / np.linalg.norm(rounded) / np.linalg.norm(plain)
        assert cosine > 0.99, cosine


@pytest.mark.parametrize(
    "remat", ["dots", pytest.param("dots_no_batch", marks=pytest.mark.slow)]
)
def test_remat_policies_save_half_precision_products_too(remat):
    ids = jax.random.randint(jax.random.key(1), (2, 64), 0, 50)
    work, slopes = {}, {}
    for dtype in ("float32", "bfloat16"):
        for policy in ("none", remat):
            toy = toy_network(dtype=dtype, remat=policy)

            def loss(lora, toy=toy):
                variables = {"params": toy.backbone["params"], "lora": lora}
                return jnp.mean(toy.model.apply(variables, ids) ** 2)

            lora = toy.adapters["generator"]
            program = jax.jit(jax.grad(loss)).lower(lora).compile()
            work[dtype, policy] = program.cost_analysis()["flops"]
            slopes[dtype, policy] = program(lora)
    again = {dtype: work[dtype, remat] - work[dtype, "none"] for dtype, _ in work}
    assert again["bfloat16"] <= again["float32"], work
    for found, whole in zip(
        jax.tree.leaves(slopes["bfloat16", remat]),
        jax.tree.leaves(slopes["bfloat16", "none"]),
        strict=True,
    ):
        np.testing.assert_allclose(found, whole, rtol=0.1, atol=1e-3)
