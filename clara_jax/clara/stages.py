"""The table of training stages: which loss, what it trains, what it starts from."""

from __future__ import annotations

import dataclasses

from clara_jax.clara.losses import (
    CompressionLoss,
    EndToEndLoss,
    Loss,
    RerankLoss,
    TextLoss,
)
from clara_jax.config import SelectionConfig


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One line of the table.

    Attributes:
      trains: adapters that the optimizer holds; all others are frozen.
      fresh: adapters that start anew even if the earlier run has them.
      copies: adapter to the one it starts as a copy of, when the earlier run lacks it.
      compresses: whether documents are vectors; else a compressor need not be there,
        and memory rows, which nothing reads, may be new.
    """

    trains: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    compresses: bool = True


STAGES: dict[str, StageSpec] = {
    "lm": StageSpec(trains=("backbone",), compresses=False),
    "scp": StageSpec(
        trains=("compressor", "generator", "memory"),
        fresh=("compressor", "generator", "memory"),
    ),
    "instruct": StageSpec(
        trains=("compressor", "generator"),
        fresh=("generator",),
    ),
    "end_to_end": StageSpec(
        trains=("reasoner", "generator"),
        copies=(("reasoner", "compressor"),),
    ),
    "rerank": StageSpec(
        trains=("reasoner",),
        copies=(("reasoner", "compressor"),),
    ),
    "text": StageSpec(
        trains=("generator",),
        fresh=("generator",),
        compresses=False,
    ),
    "closed_book": StageSpec(
        trains=("generator",),
        fresh=("generator",),
        compresses=False,
    ),
}


def make_loss(
    stage: str,
    *,
    num_memory: int,
    mse_weight: float = 0.1,
    selection: SelectionConfig | None = None,
) -> Loss:
    """The loss of a stage.

    Args:
      stage: a key of `STAGES`.
      num_memory: M.
      mse_weight: coefficient of the MSE term (scp and instruct).
      selection: the differentiable top-k (end_to_end), or its temperature (rerank).

    Raises:
      KeyError: no such stage.
    """
    selection = selection or SelectionConfig()
    losses: dict[str, Loss] = {
        "lm": TextLoss(role=None),
        "scp": CompressionLoss(num_memory, mse_weight),
        "instruct": CompressionLoss(num_memory, mse_weight),
        "end_to_end": EndToEndLoss(num_memory, selection),
        "rerank": RerankLoss(num_memory, selection),
        "text": TextLoss(),
        "closed_book": TextLoss(),
    }
    return losses[stage]
