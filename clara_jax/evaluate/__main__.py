"""Measure a model on questions with documents.

    python -m clara_jax.evaluate --model DIR --data FILE [--setting normal|oracle]

Beside the model's own scores: the same questions with the gold documents' vectors, with
none, and with another question's (how much comes from the memory?), and baselines. Into
--out go predictions.jsonl, scores.json and scores.md; started again, it goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from clara_jax.data import open_records
from clara_jax.errors import ClaraError
from clara_jax.evaluate.evaluators import questions_of
from clara_jax.evaluate.examine import (
    BASELINES,
    PredictionFile,
    conditions_of,
    examine,
    need,
)
from clara_jax.evaluate.report import markdown, scores_of
from clara_jax.files import told, write_error, write_json
from clara_jax.generate import AnswerConfig
from clara_jax.loading import load


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="run folder or model folder")
    add("--data", required=True, action="append", help="records; may be repeated")
    add("--format", default="auto", help="format of the data")
    add(
        "--setting",
        choices=("normal", "oracle"),
        default="normal",
        help="normal: choose among candidates; oracle: gold documents are given",
    )
    add("--limit", type=int, default=0, help="first so many questions; 0 takes all")
    add("--top-k", type=int, help="documents to answer from; default: as trained")
    add(
        "--baselines",
        default=",".join(BASELINES),
        help="comma-separated, out of %(default)s; empty for none",
    )
    add("--base", default="", help="base model in place of the one that DIR names")
    add("--max-new-tokens", type=int, default=32, help="longest answer")
    add("--batch-size", type=int, default=8, help="rows read together")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--out", help="folder for the results; default: DIR/evaluation/DATA_SETTING")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its result is the exit status."""
    arguments = parser().parse_args(argv)
    try:
        _run(arguments)
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    baselines = [name for name in arguments.baselines.split(",") if name]
    if arguments.limit < 0:
        raise ClaraError("--limit must not be negative")
    if "bm25" in baselines:
        need("bm25s")
    records = open_records(arguments.data, arguments.format)
    questions = questions_of(records, arguments.limit)
    if not questions:
        raise ClaraError(f"{arguments.data[0]}: holds no questions")
    config = AnswerConfig(
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        prompt_max_length=8192,
        too_long="cut",
    )
    clara = load(arguments.model, config, base=arguments.base)
    conditions = conditions_of(clara, arguments.setting, baselines)
    top_k = arguments.top_k or clara.selection.top_k
    out = Path(arguments.out or _default_out(arguments))
    settings = {
        "model": os.path.realpath(arguments.model),
        "trained": _stamp(Path(arguments.model)),
        "data": [os.path.realpath(path) for path in arguments.data],
        "setting": arguments.setting,
        "top_k": top_k,
        "conditions": conditions,
        "questions": len(questions),
        "max_new_tokens": arguments.max_new_tokens,
    }
    file = PredictionFile(out / "predictions.jsonl", settings)
    del file.done[len(questions) :]
    with tqdm(
        desc="questions", total=len(questions), initial=len(file.done), unit="q"
    ) as bar:
        for predictions in examine(
            clara,
            questions,
            setting=arguments.setting,
            top_k=top_k,
            conditions=conditions,
            start=len(file.done),
        ):
            file.add(predictions)
            bar.update(len(predictions))
    scores = scores_of(file.done, top_k, arguments.seed)
    names = ", ".join(Path(path).name for path in arguments.data)
    text = markdown(scores, f"{Path(arguments.model).name} on {names}")
    write_json(out / "scores.json", {"settings": settings, **scores})
    try:
        (out / "scores.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise write_error(out / "scores.md", error) from error
    print(f"{text}\nwritten to {out}")


def _stamp(model: Path) -> int:
    """When the adapters were written: another training makes other predictions."""
    places = (model / "adapters", model / "adapters.pth")
    return max((p.stat().st_mtime_ns for p in places if p.exists()), default=0)


def _default_out(arguments: argparse.Namespace) -> Path:
    name = f"{Path(arguments.data[0]).stem}_{arguments.setting}"
    return Path(arguments.model) / "evaluation" / name


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
