"""Special rows, positions and slots."""

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import Tokens, init_rows, positions_in_rows
from clara_jax.clara.network import fill_slots, memory_slots

N, M = 61, 2


def _prompt(rows):
    ids = jnp.asarray(rows)
    return Tokens(ids, ids != 0)


def _filled(rows, documents):
    prompt = _prompt(rows)
    embeddings = jnp.zeros((*prompt.ids.shape, 1))
    vectors = 1 + jnp.arange(len(rows) * documents * M, dtype=jnp.float32)
    vectors = vectors.reshape(len(rows), documents, M, 1)
    return np.asarray(fill_slots(embeddings, prompt, vectors, N))[..., 0].tolist()


def test_slots_take_their_documents_vectors_wherever_they_stand():
    sep = N + M + 2
    rows = [
        [1, N, N + 1, sep, N, N + 1, sep, 5, 0],
        [0, 0, 1, N, N + 1, sep, N, N + 1, sep],
    ]
    assert _filled(rows, documents=2) == [
        [0, 1, 2, 0, 3, 4, 0, 0, 0],
        [0, 0, 0, 5, 6, 0, 7, 8, 0],
    ]


def test_memory_tokens_beyond_the_documents_keep_their_embedding():
    assert _filled([[N, N + 1, 4, N, N + 1]], documents=1) == [[1, 2, 0, 0, 0]]


def test_rows_with_fewer_documents_leave_vectors_unused():
    assert _filled([[N, N + 1, 4, 4, 4]], documents=2) == [[1, 2, 0, 0, 0]]


def test_filling_has_no_loop_over_rows():
    def size(rows):
        prompt = _prompt([[N, N + 1, 4]] * rows)
        arguments = (jnp.zeros((rows, 3, 1)), prompt, jnp.ones((rows, 1, M, 1)), N)
        return len(jax.make_jaxpr(lambda *a: fill_slots(*a, N))(*arguments[:3]).eqns)

    assert size(2) == size(32)


def test_vectors_carry_gradients_only_from_their_slots():
    prompt = _prompt([[N, N + 1, 4]])
    cotangent = jnp.array([[[1.0], [2.0], [4.0]]])

    def loss(embeddings, vectors):
        return jnp.sum(fill_slots(embeddings, prompt, vectors, N) * cotangent)

    slope = jax.grad(loss, (0, 1))(jnp.zeros((1, 3, 1)), jnp.zeros((1, 1, M, 1)))
    assert slope[0][0, :, 0].tolist() == [0, 0, 4]
    assert slope[1][0, 0, :, 0].tolist() == [1, 2]


def test_memory_slots_are_the_last_real_tokens():
    mask = jnp.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    slots = memory_slots(mask, M)
    assert slots[:2].tolist() == [[2, 3], [3, 4]]
    assert bool(jnp.all((slots >= 0) & (slots < 5)))


def test_positions_do_not_count_padding():
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    assert positions_in_rows(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


def test_new_rows_look_like_the_old_ones():
    table = 3 + 2 * jax.random.normal(jax.random.key(0), (500, 4))
    rows = init_rows(table, 400, jax.random.key(1))
    assert rows.shape == (400, 4)
    np.testing.assert_allclose(rows.mean(0), table.mean(0), atol=0.4)
    np.testing.assert_allclose(rows.std(0), table.std(0), atol=0.4)
