"""What was said to questions, in a file that survives a kill."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.errors import ClaraError
from clara_jax.files import json_line, write_text, writing

_TUPLES = ("gold", "positives", "places")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was said to one question, by its number.

    Attributes:
      index: the number, from 0.
      question, gold, positives, id, missing, places: as of ``evaluate.Question``.
      answers: condition to answer.
      chosen: ranking (``model``, ``bm25``) to the candidates taken, best first.
      documents: number of candidates.
    """

    index: int
    question: str
    gold: tuple[str, ...]
    positives: tuple[int, ...]
    answers: dict[str, str]
    chosen: dict[str, list[int]]
    id: str = ""
    documents: int = 0
    missing: int = 0
    places: tuple[int, ...] = ()

    @property
    def gold_unknown(self) -> bool:
        """Whether several documents were given, and none is known to be right."""
        return not self.positives and (self.documents != 1 or self.missing > 0)


class PredictionFile:
    """Predictions as JSONL, written as they come, so that a killed run goes on.

    Args:
      path: made if absent; a torn last line is dropped.
      settings: of the evaluation; a file made with others is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.done: list[Prediction] = []
        head = json.dumps({"settings": settings}, ensure_ascii=False, sort_keys=True)
        try:
            with writing(path):
                before = path.read_text(encoding="utf-8") if path.exists() else ""
        except UnicodeDecodeError as error:
            raise ClaraError(
                f"{path}: is not a file of predictions; give another --out"
            ) from error
        # Not splitlines: texts may hold other line breaks, which JSON leaves alone.
        first, *lines = before.split("\n")
        if before and first != head:
            try:
                old, now = (json.loads(line)["settings"] for line in (first, head))
                old = {"rate": now.get("rate"), **old}  # older files may lack it
                changed = sorted(n for n in {**old, **now} if old.get(n) != now.get(n))
            except (ValueError, KeyError, TypeError):
                changed = ["everything"]
            if changed:
                raise ClaraError(
                    f"{path}: holds predictions made otherwise ({', '.join(changed)} "
                    "changed); give another --out"
                )
        kept = [head]
        for line in lines:
            try:
                values = json.loads(line)
                values |= {n: tuple(values[n]) for n in _TUPLES if n in values}
                self.done.append(Prediction(**values))
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        whole = "\n".join(kept) + "\n"
        if whole != before:
            write_text(path, whole)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions and flush them."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                values = dataclasses.asdict(prediction)
                file.write(json_line(values) + "\n")
        self.done.extend(predictions)
