"""Losses: what counts, what learns, what padding must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import IGNORE, Network, Tokens
from clara_jax.config import SelectionConfig
from clara_jax.stages import STAGES, make_loss
from clara_jax.testing import random_batch, toy_network

STAGE_NAMES = ("scp", "instruct", "end_to_end", "rerank")


@functools.cache
def _toy():
    return toy_network()


def _loss(stage, **settings):
    settings.setdefault("selection", SelectionConfig(top_k=3))
    return make_loss(stage, **settings)


def _evaluate(stage, batch, **settings):
    toy, loss = _toy(), _loss(stage, **settings)
    return jax.jit(lambda b: loss(toy, b, None))(batch)


@functools.cache
def _plain(stage):
    """Terms and metrics of the batch that other batches are held against."""
    return _evaluate(stage, random_batch(stage))


def _close(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
        ours,
        theirs,
    )


def _widened(tokens, left, right):
    """The same rows with more padding on both sides."""
    lead = [(0, 0)] * (tokens.ids.ndim - 1)
    return Tokens(
        jnp.pad(tokens.ids, [*lead, (left, right)]),
        jnp.pad(tokens.mask, [*lead, (left, right)]),
        right_padded=tokens.right_padded and not left,
    )


@pytest.mark.parametrize("stage", STAGE_NAMES)
@pytest.mark.parametrize("sides", [(0, 3), (3, 1)], ids=["right", "both"])
def test_padding_changes_nothing(stage, sides):
    batch = random_batch(stage)
    padded = {
        name: _widened(value, *sides)
        for name in ("prompt", "documents", "question", "candidates")
        if (value := getattr(batch, name)) is not None
    }
    if batch.labels is not None:
        padded["labels"] = jnp.pad(
            batch.labels, ((0, 0), sides), constant_values=IGNORE
        )
    _close(_evaluate(stage, batch.replace(**padded)), _plain(stage))


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_terms_add_up_over_microbatches(stage):
    batch = random_batch(stage)
    halves = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(2), slice(2, 4))]
    toy, loss = _toy(), _loss(stage)
    compiled = jax.jit(lambda b: loss(toy, b, None))  # one program for both halves
    parts = [compiled(half) for half in halves]
    _close(jax.tree.map(lambda a, b: a + b, *parts), _plain(stage))


def test_empty_rows_do_not_count():
    batch = random_batch("instruct")
    empty = jax.tree.map(jnp.zeros_like, batch)
    empty = empty.replace(labels=jnp.full_like(batch.labels, IGNORE))
    both = jax.tree.map(lambda a, b: jnp.concatenate((a, b)), batch, empty)
    _close(_evaluate("instruct", both), _plain("instruct"))


def test_absent_documents_do_not_count():
    batch = random_batch("instruct", documents=2)
    documents = jax.tree.map(
        lambda x: jnp.concatenate((x, jnp.zeros_like(x[:, :1])), 1), batch.documents
    )
    _close(
        _evaluate("instruct", batch.replace(documents=documents)),
        _evaluate("instruct", batch),
    )


def test_vectors_given_or_made_on_the_way_are_the_same():
    toy, batch = _toy(), random_batch("end_to_end")
    flat = jax.tree.map(lambda x: x.reshape(24, -1), batch.candidates)
    memory = toy.compress(flat).memory
    given = batch.replace(candidates=None, vectors=memory.reshape(4, 6, 2, 16))
    _close(_evaluate("end_to_end", given), _plain("end_to_end"))


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_gradients_reach_what_the_stage_trains(stage):
    toy, loss, batch = _toy(), _loss(stage), random_batch(stage)

    def total(adapters):
        sums, weights, _ = loss(toy.with_adapters(adapters), batch, None)
        return sum(sums[key] / weights[key] for key in sums)

    slope = jax.jit(jax.grad(total))(toy.adapters)
    norms = {
        name: float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree)))
        for name, tree in slope.items()
    }
    for name in STAGES[stage].trains:
        assert norms[name] > 1e-4, name
    assert norms["compressor"] == 0 or stage in ("scp", "instruct")
    assert norms["reasoner"] == 0 or stage in ("end_to_end", "rerank")
    for name in set(STAGES[stage].trains) - {"memory"}:
        assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(slope[name])), (
            f"a part of {name} gets no gradient"
        )


def test_mse_moves_both_means():
    toy, batch = _toy(), random_batch("scp")
    with_term = _plain("scp")
    without = _evaluate("scp", batch, mse_weight=0.0)
    assert set(with_term[0]) == {"answer", "mse"} and set(without[0]) == {"answer"}
    flat = jax.tree.map(lambda x: x[:, 0], batch.documents)
    encoding = toy.compress(flat)
    gap = jnp.mean(jnp.square(encoding.memory_mean - encoding.text_mean))
    np.testing.assert_allclose(
        with_term[0]["mse"] / with_term[1]["mse"], 0.1 * gap, rtol=1e-4
    )


def test_rows_without_positives_are_left_out_of_rerank():
    batch = random_batch("rerank")
    none = batch.positives.at[1].set(False)
    dropped = jax.tree.map(lambda x: jnp.delete(x, 1, axis=0), batch)
    ours = _evaluate("rerank", batch.replace(positives=none))
    _close(ours[:2], _evaluate("rerank", dropped)[:2])
    toy, loss = _toy(), _loss("rerank")

    def total(reasoner):
        network = toy.with_adapters({"reasoner": reasoner})
        empty = batch.replace(positives=jnp.zeros_like(batch.positives))
        return loss(network, empty, None)[0]["rerank"]

    slope = jax.jit(jax.grad(total))(toy.adapters["reasoner"])
    assert all(bool(jnp.all(x == 0)) for x in jax.tree.leaves(slope))


def test_recall_is_counted_from_labels_it_never_trains_on():
    batch = random_batch("end_to_end")
    toy = _toy()
    _, _, metrics = _plain("end_to_end")
    assert {"recall@1", "recall@3", "token_accuracy"} <= set(metrics)
    moved = batch.replace(positives=jnp.roll(batch.positives, 1, axis=1))
    _close(_evaluate("end_to_end", moved)[0], _plain("end_to_end")[0])
    query = toy.reason(batch.question)
    assert query.shape == (4, 32)


def test_language_model_trains_the_backbone_itself():
    toy, batch = _toy(), random_batch("lm")
    loss = _loss("lm")

    def total(params):
        bare = Network(toy.model, {"params": None}, {"backbone": params})
        sums, weights, _ = loss(bare, batch, None)
        return sums["answer"] / weights["answer"]

    slope = jax.jit(jax.grad(total))(toy.backbone["params"])
    assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(slope))
