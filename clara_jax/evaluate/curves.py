"""The picture of the learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax.files import write_error

MEASURES = {
    "eval/gold/exact_match": "answers from the right document's vectors",
    "eval/selected/exact_match": "answers from the chosen document",
    "eval/recall@1": "Recall@1",
    "eval/recall@5": "Recall@5",
}

LOSSES = {
    "eval/loss": "held out",
    "eval/shuffled/loss": "held out, another document's vectors",
}


def draw(workdir: Path, stages: Sequence[str], destination: Path) -> None:
    """Draw the loss of every stage, and below it what was measured on held-out data.

    Args:
      workdir: holds a run folder for each stage.
      stages: their names.
      destination: a ``.png`` file; replaced whole.

    Raises:
      ClaraError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(stages), figsize=(4 * len(stages), 6), squeeze=False, sharex="col"
    )
    for column, stage in enumerate(stages):
        lines = _lines(workdir / stage / "metrics.jsonl")
        above, below = axes[0][column], axes[1][column]
        above.plot(*_series(lines, "loss"), color="tab:gray", label="training")
        for name, label in LOSSES.items():
            steps, values = _series(lines, name)
            if steps:
                above.plot(steps, values, marker="o", markersize=3, label=label)
                above.legend(fontsize=7, loc="best")
        above.set_title(stage)
        above.set_ylabel("loss" if column == 0 else "")
        above.set_ylim(bottom=0)
        measured = False
        for name, label in MEASURES.items():
            steps, values = _series(lines, name)
            if steps:
                below.plot(steps, values, marker="o", markersize=3, label=label)
                measured = True
        if not measured:
            below.plot(
                *_series(lines, "token_accuracy"), label="right tokens in training"
            )
        below.set_ylabel("share" if column == 0 else "")
        below.set_ylim(0, 1.02)
        below.set_xlabel("steps")
        below.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    temporary = destination.with_name(f".{destination.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        temporary.replace(destination)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(destination, error) from error
    finally:
        pyplot.close(figure)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list, list]:
    pairs = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]
