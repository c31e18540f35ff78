"""Predictions on disk, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import write_error


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was said to one question.

    Attributes:
      index: of the question.
      question, gold, positives: see `Question`.
      answers: condition to answer.
      chosen: ranking to the candidates taken, best first: ``model``, ``bm25``.
    """

    index: int
    question: str
    gold: tuple[str, ...]
    positives: tuple[int, ...]
    answers: dict[str, str]
    chosen: dict[str, list[int]]


class PredictionFile:
    """Predictions as JSONL, written as they come, so that a killed run goes on.

    Args:
      path: made if absent; a torn last line is dropped.
      settings: of the evaluation; a file made with others is refused.

    Attributes:
      done: predictions that are there.

    Raises:
      ClaraError: it belongs to another evaluation, or cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.done: list[Prediction] = []
        head = json.dumps({"settings": settings}, ensure_ascii=False, sort_keys=True)
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise ClaraError(
                f"{path}: is no file of predictions; give another --out"
            ) from error
        except OSError as error:
            raise write_error(path, error) from error
        # Not splitlines: texts may hold other line breaks, which JSON leaves alone.
        lines = before.split("\n")
        if before and lines[0] != head:
            raise ClaraError(
                f"{path}: holds predictions made otherwise ({_changed(lines[0], head)} "
                "changed); give another --out"
            )
        kept = [head]
        for line in lines[1:]:
            try:
                self.done.append(_prediction(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        whole = "\n".join(kept) + "\n"
        if whole == before:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(whole, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise write_error(path, error) from error

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions and flush them."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                for prediction in predictions:
                    text = json.dumps(
                        dataclasses.asdict(prediction), ensure_ascii=False
                    )
                    file.write(text + "\n")
        except OSError as error:
            raise write_error(self.path, error) from error
        self.done.extend(predictions)


def _changed(before: str, now: str) -> str:
    """Names of the settings in which two heads differ."""
    try:
        old, new = (json.loads(head)["settings"] for head in (before, now))
        names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    except (ValueError, KeyError, TypeError):
        names = []
    return ", ".join(names) or "everything"


def _prediction(values: dict[str, Any]) -> Prediction:
    lists = {name: tuple(values[name]) for name in ("gold", "positives")}
    return Prediction(**{**values, **lists})
