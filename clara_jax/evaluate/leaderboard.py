"""Answers in the files that data sets' leaderboards take."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from clara_jax.data.records import NO_ANSWER
from clara_jax.evaluate.metrics import normalize_answer
from clara_jax.evaluate.predictions import Prediction
from clara_jax.files import json_line, write_json, write_text


def write_leaderboard(
    folder: Path, predictions: Sequence[Prediction], formats: Sequence[str], top_k: int
) -> list[str]:
    """Write the answers of the condition ``model``, as the data set's own script reads.

    Args:
      folder: gets ``leaderboard.json``, or ``leaderboard.jsonl`` of MuSiQue.
      predictions: all of them.
      formats: of the files of records. Of more than one, and of those without a layout
        of their own, question is mapped to answer.
      top_k: documents of a ranking that were read.

    Returns:
      What is to be known of the file, a sentence each.
    """
    names, remarks = _names(predictions)
    said = {n: p.answers["model"] for n, p in zip(names, predictions, strict=True)}
    kinds = sorted(set(formats))
    kind = kinds[0] if len(kinds) == 1 else ""
    if len(kinds) > 1:
        listed = ", ".join(kinds)
        remarks.append(
            f"records are of several formats ({listed}), so that the leaderboard file "
            "maps id to answer; for a layout of theirs, give one --data at a time"
        )
    if kind == "musique":
        rows = (
            _musique(name, prediction, top_k)
            for name, prediction in zip(names, predictions, strict=True)
        )
        lines = (json_line(row) + "\n" for row in rows)
        write_text(folder / "leaderboard.jsonl", "".join(lines))
    else:
        write_json(folder / "leaderboard.json", _layout(kind, said))
    return remarks


def _names(predictions: Sequence[Prediction]) -> tuple[list[str], list[str]]:
    """Return a name for each prediction, no two alike; a remark if some are new."""
    ids = [p.id for p in predictions if p.id]
    taken = set(ids)
    if len(taken) < len(ids):
        remark = "ids are repeated: the leaderboard file has questions' numbers from 0"
        return [str(p.index) for p in predictions], [remark]
    names = [p.id or _free(str(p.index), taken) for p in predictions]
    if nameless := len(names) - len(ids):
        remark = (
            f"{nameless} of {len(names)} questions have no id: the leaderboard file "
        )
        return names, [f"{remark}has their numbers from 0"]
    return names, []


def _free(number: str, taken: Set[str]) -> str:
    """Return a number, after as many underscores as make it differ from all ids."""
    return number if number not in taken else _free(f"_{number}", taken)


def _layout(kind: str, said: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the contents of a JSON file of a format."""
    nothing = {name: [] for name in said}  # we choose documents, not sentences
    if kind == "hotpotqa":
        return {"answer": said, "sp": nothing}
    if kind == "2wikimultihopqa":
        return {"answer": said, "sp": nothing, "evidence": nothing}
    if kind == "squad":
        return {name: "" if _refuses(text) else text for name, text in said.items()}
    return said


def _musique(name: str, prediction: Prediction, top_k: int) -> dict[str, Any]:
    """Return the line of a question; the documents that were read are the support."""
    text = prediction.answers["model"]
    read = prediction.chosen.get("model", list(prediction.positives))[:top_k]
    if prediction.places:
        read = [prediction.places[i] for i in read]
    return {
        "id": name,
        "predicted_answer": text,
        "predicted_support_idxs": sorted(read),
        "predicted_answerable": not _refuses(text),
    }


def _refuses(text: str) -> bool:
    """Whether an answer is that there is none."""
    return normalize_answer(text, rules="squad") in ("", NO_ANSWER)
