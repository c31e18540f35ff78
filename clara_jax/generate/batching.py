"""Ragged rows of token ids to padded batches of few shapes.

Every new shape compiles anew, so lengths are rounded up to 16, 24, 32, 48, 64, 96, ...
and numbers of rows to powers of two: at most half of a batch is padding, and a service
sees about two programs per doubling of the length. Where many rows come together, as
when a corpus is compressed, eight programs per doubling pay for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from clara_jax.clara import Tokens

_MANY = 4
"""Full batches from which on closer lengths are worth their programs."""


def length_bucket(
    length: int, largest: int | None = None, smallest: int = 16, steps: int = 2
) -> int:
    """The padded length of a row: a power of two, or a step between two of them.

    Args:
      length: tokens in the longest row.
      largest: longest length that can occur, where it is known.
      smallest: lower bound, which saves programs where short rows cost little.
      steps: from one power of two to the next; none is shorter than 8 tokens.

    Returns:
      The smallest such number that holds `length`; never above `largest`.
    """
    length = max(length, 1)
    wanted = max(length, smallest, 16)
    step = max((1 << ((wanted - 1).bit_length() - 1)) // steps, 8)
    bucket = -(-wanted // step) * step
    return bucket if largest is None else max(length, min(bucket, largest))


def row_bucket(rows: int, batch_size: int) -> int:
    """The padded number of rows: the next power of two, `batch_size` at most."""
    return min(1 << max(rows - 1, 0).bit_length(), batch_size)


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, count: int, length: int
) -> Tokens:
    """Stack rows, padded on the right, below them empty rows.

    Args:
      rows: token ids.
      pad_id: fills the rest.
      count: rows of the result. length: its columns.

    Returns:
      `Tokens` of shape ``[count, length]``.
    """
    ids = np.full((count, length), pad_id, np.int32)
    mask = np.zeros((count, length), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return Tokens(ids=jnp.asarray(ids), mask=jnp.asarray(mask), right_padded=True)


def batches_by_length(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
    largest: int | None = None,
    smallest: int = 16,
    close: bool = False,
) -> Iterator[tuple[np.ndarray, Tokens]]:
    """Batches of rows of like length.

    Args:
      rows: token ids.
      pad_id: fills shorter rows.
      batch_size: rows in a batch.
      largest, smallest: see `length_bucket`.
      close: lengths lie closer together once there are many rows.

    Yields:
      Which rows a batch holds, as indices ``[n]``, and the batch, whose first n rows
      they are.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    steps = 8 if close and len(rows) >= _MANY * batch_size else 2
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(rows[i]) for i in chosen)
        length = length_bucket(longest, largest, smallest, steps)
        count = row_bucket(len(chosen), batch_size)
        yield chosen, pad_rows([rows[i] for i in chosen], pad_id, count, length)


def number_texts(
    rows: Sequence[Sequence[str]],
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Number the distinct texts of ragged rows.

    Args:
      rows: B rows of texts.

    Returns:
      The distinct texts in the order met; their numbers ``[B, C]``, C the longest row;
      and which places ``[B, C]`` hold one.
    """
    width = max(map(len, rows), default=0)
    places = np.zeros((len(rows), width), np.int32)
    mask = np.zeros((len(rows), width), bool)
    number: dict[str, int] = {}
    for i, row in enumerate(rows):
        mask[i, : len(row)] = True
        places[i, : len(row)] = [number.setdefault(t, len(number)) for t in row]
    return list(number), places, mask
