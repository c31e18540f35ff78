"""Training stages: what each of them is stands in one file.

A new training method is one more file with a subclass of `Stage`, and a line in
`STAGES`. See ``docs/extending.md``.
"""

from typing import Any

from clara_jax.clara import Loss
from clara_jax.config import RunConfig, require
from clara_jax.stages.base import HeldOut, Reads, Stage
from clara_jax.stages.closed_book import ClosedBook
from clara_jax.stages.end_to_end import EndToEnd
from clara_jax.stages.instruct import InstructionTuning
from clara_jax.stages.lm import LanguageModelling
from clara_jax.stages.rerank import Reranking
from clara_jax.stages.scp import Pretraining
from clara_jax.stages.text import FullText

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        LanguageModelling(),
        Pretraining(),
        InstructionTuning(),
        EndToEnd(),
        Reranking(),
        FullText(),
        ClosedBook(),
    )
}
"""Name to stage."""


def find_stage(config: RunConfig) -> Stage:
    """Return the stage of a run, after its checks of the config.

    Raises:
      ClaraError: there is no such stage, or it cannot use a setting; names the field.
    """
    unknown = f"is '{config.stage}', but must be one of {', '.join(STAGES)}"
    require(config.stage in STAGES, "stage", unknown)
    stage = STAGES[config.stage]
    stage.check(config)
    return stage


def make_loss(stage: str, **settings: Any) -> Loss:
    """Return the loss of a stage.

    Args:
      stage: a key of `STAGES`.
      **settings: fields of `RunConfig`, such as ``mse_weight`` and ``selection``.

    Raises:
      KeyError: there is no such stage.

    Example:
      >>> make_loss("scp", mse_weight=0.5)
      CompressionLoss(mse_weight=0.5)
    """
    return STAGES[stage].loss(RunConfig(stage, "-", "-", **settings))


__all__ = ["STAGES", "HeldOut", "Reads", "Stage", "find_stage", "make_loss"]
