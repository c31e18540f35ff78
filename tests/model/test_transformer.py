"""The backbone against itself: padding, windows, cache, remat, types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import Tokens, positions_in_rows
from clara_jax.config import RopeConfig
from clara_jax.model import PRESETS, Transformer, abstract_variables, count, zeros_cache
from clara_jax.testing import toy_network

GEMMA = {
    "tied": True,
    "qk_norm": True,
    "sliding_window": 3,
    "full_layers": (1,),
    "window_rope": RopeConfig(theta=50.0),
    "activation": "gelu_tanh",
    "centered_norms": True,
    "output_norms": True,
    "scaled_embeddings": True,
    "score_dim": 6,
}
VARIANTS = {
    "plain": {},
    "window": {"sliding_window": 3},
    "mixed_windows": {"sliding_window": 3, "full_layers": (1,)},
    "unrotated": {"unrotated_layers": (0,), "sliding_window": 3, "full_layers": (1,)},
    "gemma": GEMMA,
    "tied": {"tied": True},
    "qk_norm": {"qk_norm": True, "qkv_bias": True},
    "fused": {"fused_qkv": True, "fused_gate_up": True},
}


def _ids(rows=2, length=9, vocab=61):
    return jax.random.randint(jax.random.key(3), (rows, length), 3, vocab)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _apply(model, *inputs, **options):
    """Compiled as one program, which takes less time than one for each operation."""
    return model.apply(*inputs, **options)


def _variables(toy):
    return {"params": toy.backbone["params"], "lora": toy.adapters["generator"]}


def _states(toy, ids, positions=None, mask=None):
    embeddings = _apply(toy.model, _variables(toy), ids, method="embed")
    inputs = (_variables(toy), embeddings, positions, mask)
    return _apply(toy.model, *inputs, method="hidden")[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_either_side_changes_nothing(name):
    toy, ids = toy_network(**VARIANTS[name]), _ids()
    bare = _states(toy, ids)
    pad = jnp.zeros((2, 4), ids.dtype)
    real, none = jnp.ones((2, 9), bool), jnp.zeros((2, 4), bool)

    right = _states(toy, jnp.concatenate((ids, pad), 1))
    np.testing.assert_allclose(right[:, :9], bare, atol=1e-5)
    for parts in ((ids, pad), (pad, ids)):
        shifted = jnp.concatenate(parts, 1)
        mask = jnp.concatenate([none if part is pad else real for part in parts], 1)
        states = _states(toy, shifted, positions_in_rows(mask), mask)
        assert bool(jnp.all(jnp.isfinite(states)))
        kept = states[:, :9] if parts[0] is ids else states[:, 4:]
        np.testing.assert_allclose(kept, bare, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_cache_gives_the_states_of_one_pass(name):
    toy, ids = toy_network(**VARIANTS[name]), _ids()
    variables = _variables(toy)
    embeddings = _apply(toy.model, variables, ids, method="embed")
    cache, parts = zeros_cache(toy.model.config, 2, 12), []
    for chunk in (embeddings[:, :5], embeddings[:, 5:6], embeddings[:, 6:]):
        inputs = (toy.model, variables, chunk)
        states, cache = _apply(*inputs, cache=cache, method="hidden")
        parts.append(states)
    assert int(cache.length) == 9
    np.testing.assert_allclose(jnp.concatenate(parts, 1), _states(toy, ids), atol=1e-5)


def test_window_is_a_limit_on_distance():
    toy, ids = toy_network(sliding_window=3, num_layers=1), _ids(rows=1)
    changed = ids.at[0, 2].set((ids[0, 2] - 3 + 1) % 58 + 3)
    moved = jnp.any(jnp.abs(_states(toy, ids) - _states(toy, changed)) > 1e-6, -1)[0]
    assert moved.tolist() == [False, False, True, True, True] + [False] * 4


def test_full_layers_see_beyond_the_window():
    ids = _ids(rows=1)
    changed = ids.at[0, 2].set((ids[0, 2] - 3 + 1) % 58 + 3)
    reach = {}
    for full in ((), (0,), (1,), (0, 1)):
        toy = toy_network(sliding_window=3, full_layers=full)
        moved = jnp.abs(_states(toy, ids) - _states(toy, changed)) > 1e-6
        reach[full] = int(jnp.any(moved, -1)[0].sum())
    # From slot 2: two windows of 3 reach slot 6; one full layer reaches the end.
    assert reach == {(): 5, (0,): 7, (1,): 7, (0, 1): 7}


def test_future_tokens_are_never_seen():
    toy, ids = toy_network(), _ids(rows=1)
    changed = ids.at[0, 6].set((ids[0, 6] - 3 + 1) % 58 + 3)
    moved = jnp.any(jnp.abs(_states(toy, ids) - _states(toy, changed)) > 1e-6, -1)[0]
    assert moved.tolist() == [False] * 6 + [True] * 3


def test_adapter_of_zeros_is_the_base_model():
    toy, ids = toy_network(), _ids()
    params = {"params": toy.backbone["params"]}
    zero = jax.tree.map(jnp.zeros_like, toy.adapters["generator"])
    base = _apply(toy.model, params, ids)
    zeros = _apply(toy.model, {**params, "lora": zero}, ids)
    np.testing.assert_array_equal(zeros, base)
    other = _apply(toy.model, _variables(toy), ids)
    assert float(jnp.max(jnp.abs(other - base))) > 1e-3


@pytest.mark.parametrize("policy", ["full", "dots", "dots_no_batch"])
def test_remat_changes_no_gradient(policy):
    ids = _ids()

    def slope(remat):
        toy = toy_network(remat=remat)
        params = {"params": toy.backbone["params"]}

        def loss(lora):
            return jnp.sum(jnp.sin(toy.model.apply({**params, "lora": lora}, ids)))

        return jax.jit(jax.grad(loss))(toy.adapters["generator"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        slope(policy),
        slope("none"),
    )


def test_dropout_works_in_training_only():
    from clara_jax.config import LoraConfig

    toy = toy_network(lora=LoraConfig(rank=4, alpha=8.0, dropout=0.5))
    variables = _variables(toy)
    still = _apply(toy.model, variables, _ids())
    np.testing.assert_array_equal(_apply(toy.model, variables, _ids()), still)
    draws = [
        _apply(toy.model, variables, _ids(), rngs={"dropout": jax.random.key(k)})
        for k in (0, 1)
    ]
    assert float(jnp.max(jnp.abs(draws[0] - still))) > 1e-3
    assert float(jnp.max(jnp.abs(draws[0] - draws[1]))) > 1e-3


def test_bfloat16_keeps_logits_and_softmax_wide():
    toy = toy_network(dtype="bfloat16", param_dtype="bfloat16")
    variables = {"params": toy.backbone["params"]}
    assert all(
        leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(variables["params"])
    )
    ids = _ids()
    assert _apply(toy.model, variables, ids).dtype == jnp.float32
    assert _states(toy, ids).dtype == jnp.bfloat16
    jaxpr = str(jax.make_jaxpr(lambda v: toy.model.apply(v, ids))(variables))
    for line in jaxpr.splitlines():
        if " exp " in line or " rsqrt " in line:
            assert "f32" in line.split("=")[0], line


def test_rows_stand_beside_both_tables():
    toy, ids = toy_network(tied=False), _ids()
    rows = {
        "embedding": jax.random.normal(jax.random.key(1), (5, 16)),
        "head": jax.random.normal(jax.random.key(2), (5, 16)),
    }
    params = {"params": toy.backbone["params"]}
    plain = _apply(toy.model, params, ids)
    both = _apply(toy.model, {**params, "rows": rows}, ids)
    assert both.shape[-1] == plain.shape[-1] + 5
    np.testing.assert_allclose(both[..., :-5], plain, atol=1e-6)
    special = toy.model.apply(
        {**params, "rows": rows}, jnp.array([[60, 61, 65]]), method="embed"
    )
    np.testing.assert_array_equal(special[0, 1:], rows["embedding"][jnp.array([0, 4])])


def test_scale_of_embeddings_is_of_tokens_and_their_rows_alone():
    toy = toy_network(scaled_embeddings=True, dtype="bfloat16", width=24)
    rows = toy.variables()["rows"]["embedding"]
    table = toy.backbone["params"]["embed"]["embedding"]
    found = _apply(toy.model, toy.variables(), jnp.array([[7, 61, 65]]), method="embed")
    bare = jnp.stack((table[7], rows[0], rows[4])).astype(jnp.bfloat16)
    scale = jnp.asarray(24**0.5, jnp.bfloat16)  # 4.90625, as transformers rounds it
    np.testing.assert_array_equal(found[0], bare * scale)
    prompt = Tokens(jnp.array([[7, 61, 62]]), jnp.ones((1, 3), bool))
    vectors = jax.random.normal(jax.random.key(0), (1, 1, 2, 24), jnp.bfloat16)
    np.testing.assert_array_equal(toy.embed(prompt, vectors)[0, 1:], vectors[0, 0])


def test_short_rows_need_no_mask_for_a_window_that_hides_nothing():
    for window, masked in ((8, True), (9, False)):
        toy = toy_network(sliding_window=window, full_layers=(1,))
        inputs = {"params": toy.backbone["params"]}, _ids()
        text = jax.jit(toy.model.apply).lower(*inputs).as_text()
        assert ("tensor<2x1x9x9xi1>" in text) == masked


def test_padded_vocabulary_rows_take_no_part():
    toy = toy_network(text_vocab=50, vocab_size=61)
    assert (
        toy.model.apply({"params": toy.backbone["params"]}, _ids(vocab=50)).shape[-1]
        == 50
    )


def test_all_keys_hidden_gives_no_nan_forwards_or_backwards():
    toy, ids = toy_network(), _ids()
    mask = jnp.zeros((2, 9), bool).at[1].set(True)

    def loss(lora):
        variables = {"params": toy.backbone["params"], "lora": lora}
        return jnp.sum(toy.model.apply(variables, ids, None, mask)[1])

    value, slope = jax.jit(jax.value_and_grad(loss))(toy.adapters["generator"])
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slope))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("mistral_7b", 7_241_732_096),
        ("smollm3_3b", 3_075_098_624),
        ("gemma3_1b", 999_885_952),
        ("phi4_mini", 3_836_021_760),
    ],
)
def test_presets_have_the_published_size(name, parameters):
    config = PRESETS[name]
    variables = abstract_variables(Transformer(config, config.vocab_size))
    width = 4 if config.param_dtype == "float32" else 2
    assert count(variables["params"]) == (parameters, parameters * width)
