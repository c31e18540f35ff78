"""Relevance and the differentiable top-k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.clara import cosine_scores, soft_topk

SCORES = jnp.array([[0.1, 0.9, 0.3, 0.5], [0.7, -0.2, 0.6, 0.65]])


def test_weights_are_exactly_one_hot_and_ordered():
    weights, indices = soft_topk(SCORES, 3, 0.02)
    assert indices.tolist() == [[1, 3, 2], [0, 3, 2]]
    np.testing.assert_array_equal(weights, jax.nn.one_hot(indices, 4))


def _soft(scores, k, temperature, exclusion):
    """Rows of softmax by hand, one slot after the other."""
    rows, taken = [], []
    for _ in range(k):
        logits = np.array(scores, np.float64) / temperature
        for index in taken:
            logits[index] += np.log(1e-8) if exclusion == "reference" else -np.inf
        share = np.exp(logits - logits.max())
        rows.append(share / share.sum())
        taken.append(int(np.argsort(-np.array(scores))[len(taken)]))
    return rows


@pytest.mark.parametrize("exclusion", ["reference", "exact"])
def test_slopes_are_those_of_the_soft_rows(exclusion):
    cotangent = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def loss(scores):
        return jnp.sum(soft_topk(scores, 3, 0.2, exclusion)[0] * cotangent)

    slope = jax.grad(loss)(SCORES)
    for b in range(2):
        expected = np.zeros(4)
        for share, c in zip(
            _soft(SCORES[b], 3, 0.2, exclusion), np.asarray(cotangent[b]), strict=True
        ):
            expected += share * (c - (share * c).sum()) / 0.2
        np.testing.assert_allclose(slope[b], expected, rtol=1e-4, atol=1e-5)


def test_exact_exclusion_ignores_a_leader_that_reference_keeps():
    """At temperature 0.02 a lead of 0.6 outweighs log(1e-8)."""
    scores = jnp.array([[0.9, 0.3, 0.29]])
    second = {}
    for exclusion in ("reference", "exact"):
        jacobian = jax.jacobian(lambda s, e=exclusion: soft_topk(s, 2, 0.02, e)[0])
        second[exclusion] = float(jnp.abs(jacobian(scores)[0, 1, 1, 0, 2]))
    assert second["reference"] < 1e-4
    assert second["exact"] > 1


def test_missing_candidates_are_chosen_last():
    mask = jnp.array([[True, False, True, False], [True] * 4])
    weights, indices = soft_topk(SCORES, 2, 0.02, mask=mask)
    assert indices.tolist() == [[2, 0], [0, 3]]
    slope = jax.grad(lambda s: jnp.sum(soft_topk(s, 2, 0.5, mask=mask)[0][:, 0, 0]))(
        SCORES
    )
    assert slope[0, 1] == slope[0, 3] == 0 and bool(jnp.all(jnp.isfinite(slope)))
    assert weights.shape == (2, 2, 4)


@pytest.mark.parametrize("exclusion", ["reference", "exact"])
def test_all_candidates_and_no_temperature_stay_finite(exclusion):
    slope = jax.grad(
        lambda s: jnp.sum(
            soft_topk(s, 4, 0.0, exclusion)[0] * jnp.arange(4.0)[None, :, None]
        )
    )(SCORES * 0 + SCORES[:1])
    assert bool(jnp.all(jnp.isfinite(slope)))


def test_too_many_documents_are_refused():
    with pytest.raises(ValueError, match="top_k 5 is above the number of candidates 4"):
        soft_topk(SCORES, 5, 0.02)


def test_cosine():
    queries = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    documents = jnp.array([[[6.0, 8.0], [4.0, -3.0]], [[1.0, 0.0], [0.0, 1.0]]])
    scores = cosine_scores(queries.astype(jnp.bfloat16), documents)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, [[1, 0], [0, 0]], atol=1e-6)
    slope = jax.grad(lambda q: jnp.sum(cosine_scores(q, documents)))(queries)
    assert bool(jnp.all(jnp.isfinite(slope)))
