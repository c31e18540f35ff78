"""What a loss is fed: token rows and batches of them, as pytrees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from clara_jax.shapes import Array, Bool, Float, Int

IGNORE = -100
"""Label of a position that no loss counts."""


@struct.dataclass
class Tokens:
    """Rows of token ids with padding.

    Attributes:
      ids: int32.
      mask: True on real tokens, which must be one unbroken run.
      right_padded: static promise that every run starts at position 0. It lets
        attention work from causality alone, without a dense mask. False is always
        right, and slower.
      positions: to use instead of each token's place in its own run (the original
        counts padding on the left; only parity tests need that).
    """

    ids: Int[Array, "*rows T"]
    mask: Bool[Array, "*rows T"]
    right_padded: bool = struct.field(pytree_node=False, default=False)
    positions: Int[Array, "*rows T"] | None = None


def pad_rows(rows: Sequence[Any], pad_id: int, count: int, length: int) -> Tokens:
    """Stack rows of ids (None: an empty one) in numpy, as ``[count, length]``."""
    ids: Any = np.full((count, length), pad_id, np.int32)
    mask: Any = np.zeros((count, length), bool)
    for i, row in enumerate(rows):
        if row is not None:
            ids[i, : len(row)] = row
            mask[i, : len(row)] = True
    return Tokens(ids, mask, right_padded=True)


@struct.dataclass
class Batch:
    """One batch of any stage; fields that a stage does not use are None.

    Attributes:
      prompt: ``[B, T]`` chat prompts with their answers; documents appear as slots of M
        memory tokens. Slots are numbered from left to right.
      labels: ``[B, T]`` the token at its own position (not shifted) where the answer is
        supervised, `IGNORE` elsewhere.
      documents: ``[B, J, S]`` encoder rows ``<ENC><bos>text<eos>`` and M memory tokens,
        in slot order (scp, instruct). An absent document has an empty mask.
      question: ``[B, S]`` encoder rows of the questions (end_to_end, rerank).
      candidates: ``[B, C, S]`` encoder rows of the candidates, or None with `vectors`.
      vectors: ``[B, C, M, D]`` candidates compressed beforehand, or None.
      candidate_mask: ``[B, C]`` False where a row has fewer candidates.
      positives: ``[B, C]`` gold candidates: the target of ``rerank``, and no more than
        a metric in ``end_to_end``.
    """

    prompt: Tokens | None = None
    labels: Int[Array, "B T"] | None = None
    documents: Tokens | None = None
    question: Tokens | None = None
    candidates: Tokens | None = None
    vectors: Float[Array, "B C M D"] | None = None
    candidate_mask: Bool[Array, "B C"] | None = None
    positives: Bool[Array, "B C"] | None = None
