"""The last word of an experiment: its tables, its curves, its numbers as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.commands import Interrupt, Interrupted
from clara_jax.config import RunConfig, parse
from clara_jax.errors import ClaraError
from clara_jax.evaluate import curves
from clara_jax.evaluate.examine import Prediction
from clara_jax.evaluate.metrics import ANSWER_METRICS
from clara_jax.evaluate.scores import bootstrap, recall_of, scores_of
from clara_jax.files import read_json, write_json, write_text
from clara_jax.pipeline.before import ReportSettings, describe
from clara_jax.pipeline.measure import (
    KS,
    Known,
    Models,
    answer_all,
    compress_corpus,
    corpus_of,
    corpus_recall,
    held_out,
    last_of,
)
from clara_jax.pipeline.pages import to_markdown
from clara_jax.train import Experiment, read_lines

DIFFERENCES = (
    ("gold", "shuffled"),
    ("gold", "none"),
    ("gold", "tuned_text"),
    ("model", "tuned_text_bm25"),
    ("model", "bm25"),
)
"""Conditions whose F1 is compared question by question."""


def check(experiment: Experiment) -> None:
    """Refuse what could not be reported in the end, before anything is trained.

    Args:
      experiment: with a group ``report``.

    Raises:
      ClaraError: a setting is unknown or wrong, or no run could be measured.
    """
    parse(ReportSettings, experiment.report or {}, "report")
    last_of(experiment.runs)
    if experiment.mix is None:
        raise ClaraError(
            "config field 'report': its questions are those of a mix, and there is no "
            "group mix; add one or take the group report away"
        )
    if jax.process_count() > 1:
        raise ClaraError(
            "config field 'report': is made by one process only; start the experiment "
            "in one, or take the group report away"
        )


def report(
    workdir: Path,
    settings: Mapping[str, Any],
    runs: Sequence[RunConfig],
    mix_folder: Path,
    seconds: float | None = None,
) -> None:
    """Measure what the finished runs have learned, write it down and print it.

    Writes ``report.md``, ``report.json`` and ``curves.png``; answers and vectors so far
    are kept in ``report/``, so that a killed command goes on.

    Args:
      workdir: the experiment's folder.
      settings: fields of `ReportSettings`.
      runs: finished ones.
      mix_folder: their data.
      seconds: that this may take, about; None for any time. Some questions are answered
        under every condition however little it is.

    Raises:
      ClaraError: a run or the data are missing, or nothing can be written.
      Interrupted: SIGINT or SIGTERM; what was measured is kept.
    """
    given = parse(ReportSettings, settings, "report")
    done = workdir / "report.md"
    asked = dataclasses.asdict(given)
    if not done.exists() or _settings_of(workdir / "report.json") != asked:
        with _stoppable(workdir) as stop:
            facts = _measure(workdir, given, runs, mix_folder, seconds, stop)
        names = [Path(run.workdir).name for run in runs]
        curves.draw(workdir, names, workdir / "curves.png")
        write_json(workdir / "report.json", facts)
        text = to_markdown(facts)
        _card(workdir, settings, runs, mix_folder, text)
        write_text(done, text)
    print(f"\n{done.read_text(encoding='utf-8')}")
    print(f"written to {done}; curves: {workdir / 'curves.png'}\nask your own:")
    model = workdir / "adapters" / Path(last_of(runs).workdir).name
    print(f"  python -m clara_jax.answer --model {model} --documents FILE QUESTION")


def _settings_of(path: Path) -> Any:
    """The settings of a report that is there; None if it must be made anew."""
    try:
        return read_json(path).get("settings")
    except ClaraError:
        return None


def _card(
    workdir: Path,
    settings: Mapping[str, Any],
    runs: Sequence[RunConfig],
    mix_folder: Path,
    text: str,
) -> None:
    """Put what was measured into the card of the model that it was measured of."""
    last = last_of(runs)
    path = workdir / "adapters" / Path(last.workdir).name / "README.md"
    if path.exists():
        scores = text.split("\n", 2)[2].strip()  # its heading left out
        write_text(path, describe(workdir, last, settings, str(mix_folder), scores))


def _measure(
    workdir: Path,
    settings: ReportSettings,
    runs: Sequence[RunConfig],
    mix_folder: Path,
    seconds: float | None,
    stop: Any,
) -> dict[str, Any]:
    begin = time.monotonic()

    def left(share: float) -> float | None:
        if seconds is None:
            return None
        return share * (seconds - (time.monotonic() - begin))

    models = Models.of(runs, settings)
    questions, sources = held_out(mix_folder, settings.questions)
    folder = workdir / "report"
    corpus = corpus_of(mix_folder, settings.corpus)
    vectors = compress_corpus(models.clara, corpus, folder, left(0.4), stop)
    known = Known(models.clara, corpus, vectors)
    answered = answer_all(models, questions, sources, known, folder, left(0.8), stop)
    some = questions[: len(answered)]
    recall = corpus_recall(models, some, known, settings.seed)
    stop()
    names = sources[: len(answered)]
    by_source = {
        name: [p for p, own in zip(answered, names, strict=True) if own == name]
        for name in sorted(set(names))
    }
    best = product_rate(runs[0].dtype)
    clara = models.clara
    layers = sum(
        x.size for x in jax.tree.leaves(clara.network.backbone["params"]["layers"])
    )
    return {
        "settings": dataclasses.asdict(settings),
        "name": workdir.name,
        "backbone": read_json(Path(runs[0].workdir) / "config.json")["backbone"],
        "rate": clara.memory.compression_rate,
        "vectors": clara.memory.num_memory,
        "top_k": clara.selection.top_k,
        "candidates": max(len(q.documents) for q in questions),
        "questions": {"answered": len(answered), "of": len(questions)},
        "all": _scores(answered, settings.seed),
        "sources": {n: _scores(ps, settings.seed) for n, ps in by_source.items()},
        "corpus": recall,
        "training": [_training(run, layers, best) for run in runs],
        "product_flops": best,
        "device": jax.devices()[0].device_kind,
        "mix": read_json(mix_folder / "manifest.json"),
        "versions": read_json(Path(runs[0].workdir) / "summary.json")["versions"],
    }


def _scores(predictions: list[Prediction], seed: int) -> dict[str, Any]:
    """Scores of `scores_of`, and the differences of F1 with their intervals."""
    found = scores_of(predictions, max(KS), seed)
    positives = [p.positives for p in predictions]
    found["retrieval"] = {
        name: recall_of(positives, [p.chosen[name] for p in predictions], KS, seed)
        for name in found["retrieval"]
    }
    each = {
        name: [
            max((ANSWER_METRICS["f1"](p.answers[name], g) for g in p.gold), default=0.0)
            for p in predictions
        ]
        for name in predictions[0].answers
    }
    found["differences"] = []
    for one, other in DIFFERENCES:
        if one in each and other in each:
            gaps = np.subtract(each[one], each[other]).tolist()
            low, high = bootstrap(gaps, seed)
            mean = statistics.fmean(gaps)
            found["differences"].append([one, other, mean, low, high])
    return found


def _training(run: RunConfig, layers: int, best: float) -> dict[str, Any]:
    """What a run's summary and its curve say."""
    summary = read_json(Path(run.workdir) / "summary.json")
    lines = read_lines(Path(run.workdir) / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    some = max(1, len(losses) // 10)
    # 2 for each weight and token forwards, 2 for the gradient of its input.
    flops = 4.0 * layers * summary["tokens_per_s"] / summary["device"]["count"]
    held = {
        name: [line[f"eval/{name}"] for line in lines if f"eval/{name}" in line]
        for name in ("loss", "shuffled/loss")
    }
    return {
        "name": Path(run.workdir).name,
        "steps": summary["steps"],
        "cut": summary.get("cut"),
        "tokens": summary["tokens"],
        "tokens_per_s": summary["tokens_per_s"],
        "seconds": summary["wall_seconds"],
        "product_share": flops / best if best else None,
        "loss": [statistics.fmean(losses[:some]), statistics.fmean(losses[-some:])]
        if losses
        else None,
        "held_out": {name: values[-1] for name, values in held.items() if values},
    }


def product_rate(dtype: str, rounds: int = 5) -> float:
    """Measure the best matrix product of the first device, in FLOP/s.

    Args:
      dtype: of the factors.
      rounds: timed runs; the fastest counts.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    factor = jax.numpy.full((size, size), 0.5, dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(factor, factor).block_until_ready()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        multiply(factor, factor).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2.0 * size**3 / min(times)


@contextlib.contextmanager
def _stoppable(workdir: Path) -> Iterator[Any]:
    """What raises `Interrupted` when called after a signal."""
    with Interrupt().listen() as interrupt:

        def stop() -> None:
            if interrupt.signal:
                raise Interrupted(
                    interrupt.signal,
                    f"{interrupt.signal}: what was measured is kept in "
                    f"{workdir / 'report'}; start the same command again to go on",
                )

        yield stop
