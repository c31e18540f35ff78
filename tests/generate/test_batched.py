"""Rows through compiled batches: order, progress, an early end."""

import numpy as np
import pytest

from clara_jax.generate import encode_rows
from clara_jax.testing import BOS, EOS, toy_network

TOY = toy_network()
N, M = TOY.model.text_vocab, TOY.num_memory
ROWS = [
    [N + M + 1, BOS, *range(3, 3 + length), EOS, *range(N, N + M)]
    for length in (30, 2, 9, 4, 1)
]


def encode(rows, **options):
    return encode_rows(
        TOY,
        rows,
        role="compressor",
        pad_id=0,
        batch_size=2,
        **options,
    )


def test_rows_keep_their_order_whatever_batches_they_fall_into():
    told = []
    together = encode(ROWS, tell=told.append)
    assert told == [2, 2, 1]
    alone = np.concatenate([encode([row]) for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert encode([]).shape == (0, M, 16)


def test_what_is_told_may_end_the_work():
    told = []

    def tell(count):
        told.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(ROWS, tell=tell)
    assert told == [2]
