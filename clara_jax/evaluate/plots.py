"""The picture of the learning curves."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_jax.files import replace_file

LOSSES = {
    "eval/loss": "held out",
    "eval/shuffled/loss": "held out, another document's vectors",
}
MEASURES = {
    "eval/gold/exact_match": "answers from the right document's vectors",
    "eval/selected/exact_match": "answers from the chosen document",
    "eval/recall@1": "Recall@1",
    "eval/recall@5": "Recall@5",
}
_DOTTED = {"marker": "o", "markersize": 3}


def draw(workdir: Path, stages: Sequence[str], destination: Path) -> None:
    """Draw a PNG of the loss of every stage, and of what was measured on held-out data.

    `workdir` holds a run folder for each stage; `destination` is replaced whole.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(stages), figsize=(4 * len(stages), 6), squeeze=False, sharex="col"
    )
    for column, stage in enumerate(stages):
        path = workdir / stage / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        values = [json.loads(line) for line in lines]
        above, below = axes[0][column], axes[1][column]
        _plot(above, values, {"loss": "training"}, color="tab:gray")
        if _plot(above, values, LOSSES, **_DOTTED):
            above.legend(fontsize=7, loc="best")
        above.set(title=stage, ylabel="" if column else "loss")
        above.set_ylim(bottom=0)
        if not _plot(below, values, MEASURES, **_DOTTED):
            _plot(below, values, {"token_accuracy": "right tokens in training"})
        below.set(ylabel="" if column else "share", xlabel="steps", ylim=(0, 1.02))
        if below.lines:
            below.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    pyplot.close(figure)
    replace_file(destination, image.getvalue())


def _plot(axes: Any, values: Any, labels: dict[str, str], **style: Any) -> bool:
    """Plot the series that have values; return whether any has."""
    before = len(axes.lines)
    for name, label in labels.items():
        found = [(v["step"], v[name]) for v in values if v.get(name) is not None]
        if found:
            axes.plot(*zip(*found, strict=True), label=label, **style)
    return len(axes.lines) > before
