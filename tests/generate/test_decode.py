"""Decoding with a cache against recomputing every step from scratch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import ModelConfig
from clara_jax.errors import ClaraError
from clara_jax.generate import decode
from clara_jax.generate.decode import Sampling
from clara_jax.model import Transformer, init_backbone

VOCAB, NEW = 40, 7
SIZES = ModelConfig(
    vocab_size=VOCAB,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
)
GREEDY = decode.DecodeConfig(max_new_tokens=NEW, eos_ids=(), pad_id=0)


PROMPTS = [[5, 6, 7, 8, 9, 1, 2, 3, 4], [11, 3], [30]]


@functools.partial(jax.jit, static_argnums=0)
def uncached(model, variables, ids):
    return model.apply(variables, ids)


@functools.cache
def build(window=None):
    model = Transformer(dataclasses.replace(SIZES, sliding_window=window), VOCAB)
    params = init_backbone(model, jax.random.key(0))
    # Larger weights, so that the best token changes from step to step.
    params = jax.tree.map(lambda x: x * 8 if x.std() > 0 else x, params)
    return model, {"params": params}


def recompute(model, variables, prompt):
    """Greedy tokens without cache, padding or batch."""
    ids = list(prompt)
    for _ in range(NEW):
        padded = jnp.array([ids + [0] * (16 - len(ids))])
        ids.append(int(uncached(model, variables, padded)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def rows(prompts, length, side="right"):
    ids = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for i, prompt in enumerate(prompts):
        at = {"right": 0, "left": length - len(prompt), "middle": 2}[side]
        ids[i, at : at + len(prompt)] = prompt
        mask[i, at : at + len(prompt)] = True
    return jnp.array(ids), jnp.array(mask)


def embed(variables, ids):
    return variables["params"]["embed"]["embedding"][ids]


def run(model, variables, ids, mask, config=GREEDY, seed=0):
    embeddings = embed(variables, ids)
    keys = decode.row_keys(seed, jnp.arange(len(mask)))
    state = decode.jit_prefill(model, variables, embeddings, mask, config, keys)
    return np.array(decode.jit_decode_loop(model, variables, state, config).tokens)


@pytest.mark.parametrize("window", [None, 4])
def test_equals_uncached_under_any_padding(window):
    model, variables = build(window)
    expected = [recompute(model, variables, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in expected}) == 3
    for side in ("right", "left", "middle"):
        tokens = run(model, variables, *rows(PROMPTS, 12, side))
        np.testing.assert_array_equal(tokens, expected, err_msg=side)


def test_rows_stop_at_any_end_token_and_fill_with_pad():
    model, variables = build()
    ids, mask = rows(PROMPTS, 12)
    free = run(model, variables, ids, mask)
    ends = (int(free[0, 2]), int(free[1, 4]))
    config = dataclasses.replace(GREEDY, eos_ids=ends, pad_id=39)
    tokens = run(model, variables, ids, mask, config)
    for row, unstopped in zip(tokens, free, strict=True):
        stops = np.flatnonzero(np.isin(unstopped, ends))
        length = stops[0] + 1 if stops.size else NEW
        np.testing.assert_array_equal(row[:length], unstopped[:length])
        np.testing.assert_array_equal(row[length:], 39)
    assert (tokens[0] == 39).sum() >= NEW - 3
    trimmed = decode.trim(tokens, ends)
    assert trimmed[0] == free[0, : len(trimmed[0])].tolist()
    assert len(trimmed[0]) <= 2


def test_loop_ends_once_all_rows_are_done_and_empty_rows_do_not_hold_it():
    model, variables = build()
    ids, mask = rows([PROMPTS[0], []], 12)
    free = run(model, variables, ids, mask)
    config = dataclasses.replace(GREEDY, eos_ids=(int(free[0, 1]),))
    embeddings = embed(variables, ids)
    state = decode.jit_prefill(model, variables, embeddings, mask, config)
    state = decode.jit_decode_loop(model, variables, state, config)
    assert int(state.step) <= 2
    assert (np.array(state.tokens)[1] == 0).all()


def test_single_steps_equal_the_loop():
    model, variables = build()
    ids, mask = rows(PROMPTS, 12)
    embeddings = embed(variables, ids)
    state = decode.jit_prefill(model, variables, embeddings, mask, GREEDY)
    for _ in range(NEW - 1):
        state = decode.jit_decode_step(model, variables, state, GREEDY)
    np.testing.assert_array_equal(state.tokens, run(model, variables, ids, mask))


def test_seeds():
    model, variables = build()
    ids, mask = rows(PROMPTS, 12)
    config = dataclasses.replace(GREEDY, sampling=Sampling(1.0, 0.9))
    first, same, other = (
        run(model, variables, ids, mask, config, s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_no_room_is_refused():
    with pytest.raises(ClaraError, match="max_new_tokens"):
        decode.DecodeConfig(max_new_tokens=0, eos_ids=(), pad_id=0)
