"""The report of an experiment: its tables, its curves, its numbers as JSON."""

import contextlib
import dataclasses
import time
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import numpy as np

from clara_jax.commands import Interrupt, Interrupted
from clara_jax.config import RunConfig, parse
from clara_jax.convert import load_model
from clara_jax.errors import ClaraError
from clara_jax.evaluate import plots
from clara_jax.evaluate.metrics import best_scores, bootstrap, recall_of
from clara_jax.evaluate.predictions import Prediction
from clara_jax.evaluate.scores import (
    LABELS,
    SHOWN,
    answers_table,
    markdown_table,
    remarks,
    scores_of,
)
from clara_jax.files import read_json, write_json, write_text
from clara_jax.pipeline import measure
from clara_jax.pipeline.before import ReportSettings, card
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
    """Refuse an experiment that could not be reported, before anything is trained.

    Raises:
      ClaraError: a setting is unknown or wrong, or no run could be measured.
    """
    parse(ReportSettings, experiment.report or {}, "report")
    measure.last_of(experiment.runs)
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
      seconds: that this may take, about; None for any time. However little it is, some
        questions are answered under every condition.

    Raises:
      ClaraError: a run or the data are missing, or nothing can be written.
      Interrupted: SIGINT or SIGTERM.
    """
    given = parse(ReportSettings, settings, "report")
    last = measure.last_of(runs)
    model, done = workdir / "adapters" / Path(last.workdir).name, workdir / "report.md"
    made = None
    with contextlib.suppress(ClaraError):
        made = read_json(workdir / "report.json").get("settings")
    if not done.exists() or made != dataclasses.asdict(given):
        with Interrupt().listen() as interrupt:

            def stop() -> None:
                if interrupt.signal:
                    raise Interrupted(
                        interrupt.signal,
                        f"{interrupt.signal}: what was measured is kept in "
                        f"{workdir / 'report'}; start the same command again to go on",
                    )

            facts = _measure(workdir, given, runs, mix_folder, seconds, stop)
        names = [Path(run.workdir).name for run in runs]
        plots.draw(workdir, names, workdir / "curves.png")
        write_json(workdir / "report.json", facts)
        text = to_markdown(facts)
        path = model / "README.md"
        if path.exists():  # the card of the model that was measured
            scores = text.split("\n", 2)[2].strip()  # its heading left out
            read = load_model(last.workdir)
            write_text(path, card(workdir, last, given, str(mix_folder), read, scores))
        write_text(done, text)
    print(f"\n{done.read_text(encoding='utf-8')}")
    print(f"written to {done}; curves: {workdir / 'curves.png'}\nask your own:")
    print(f"  python -m clara_jax.answer --model {model} --documents FILE QUESTION")


def _measure(
    workdir: Path,
    settings: ReportSettings,
    runs: Sequence[RunConfig],
    mix_folder: Path,
    seconds: float | None,
    stop: Callable[[], None],
) -> dict[str, Any]:
    begin = time.monotonic()

    def left(share: float) -> float | None:
        passed = time.monotonic() - begin
        return None if seconds is None else share * (seconds - passed)

    models = measure.Models.of(runs, settings)
    questions, sources = measure.held_out(mix_folder, settings.questions)
    folder = workdir / "report"
    corpus = measure.corpus_of(mix_folder, settings.corpus)
    vectors = measure.compress_corpus(models.clara, corpus, folder, left(0.4), stop)
    known = measure.Known(models.clara, corpus, vectors)
    given = (models, questions, sources, known, folder)
    answered = measure.answer_all(*given, left(0.8), stop)
    some = questions[: len(answered)]
    recall = measure.corpus_recall(models, some, known, settings.seed)
    stop()
    by_source: dict[str, list[Prediction]] = {}
    for prediction, source in zip(answered, sources, strict=False):
        by_source.setdefault(source, []).append(prediction)
    best, clara = product_rate(runs[0].dtype), models.clara
    arrays = jax.tree.leaves(clara.network.backbone["params"]["layers"])
    layers = sum(array.size for array in arrays)
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
        "sources": {
            name: _scores(own, settings.seed) for name, own in sorted(by_source.items())
        },
        "corpus": recall,
        "training": [_training(run, layers, best) for run in runs],
        "product_flops": best,
        "device": jax.devices()[0].device_kind,
        "mix": read_json(mix_folder / "manifest.json"),
        "versions": read_json(Path(runs[0].workdir) / "summary.json")["versions"],
    }


def _scores(predictions: list[Prediction], seed: int) -> dict[str, Any]:
    """Return scores of `scores_of`, and differences of F1 with their intervals."""
    found, ks = scores_of(predictions, max(measure.KS), seed), measure.KS
    positives = [p.positives for p in predictions]
    missing = [p.missing for p in predictions]
    found["retrieval"] = {
        name: recall_of(
            positives, [p.chosen[name] for p in predictions], ks, seed, missing
        )
        for name in found["retrieval"]
    }
    gold = [p.gold for p in predictions]
    each = {
        name: np.array(best_scores("f1", [p.answers[name] for p in predictions], gold))
        for name in predictions[0].answers
    }
    found["differences"] = [
        [one, other, *bootstrap((each[one] - each[other]).tolist(), seed).values()]
        for one, other in DIFFERENCES
        if one in each and other in each
    ]
    return found


def _training(run: RunConfig, layers: int, best: float) -> dict[str, Any]:
    """Return what a run's summary and its curve say."""
    summary = read_json(Path(run.workdir) / "summary.json")
    lines = read_lines(Path(run.workdir) / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    some = max(1, len(losses) // 10)
    # 2 for each weight and token forwards, 2 for the gradient of its input.
    flops = 4.0 * layers * summary["tokens_per_s"] / summary["device"]["count"]
    held = {
        name: line[f"eval/{name}"]
        for name in ("loss", "shuffled/loss")
        for line in lines
        if f"eval/{name}" in line
    }
    return {
        "name": Path(run.workdir).name,
        "steps": summary["steps"],
        "cut": summary.get("cut"),
        "tokens": summary["tokens"],
        "tokens_per_s": summary["tokens_per_s"],
        "seconds": summary["wall_seconds"],
        "product_share": flops / best if best else None,
        "loss": [fmean(losses[:some]), fmean(losses[-some:])] if losses else None,
        "held_out": held,
    }


def product_rate(dtype: str) -> float:
    """Return the FLOP/s of the first device's matrix product, the fastest of five."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    factor = jax.numpy.full((size, size), 0.5, dtype)
    multiply = jax.jit(lambda a, b: a @ b)

    def once() -> None:
        multiply(factor, factor).block_until_ready()

    once()
    return 2.0 * size**3 / min(timeit.repeat(once, number=1, repeat=5))


NAMES = {
    **LABELS,
    "model": "CLaRa: vectors of what the reasoner chooses",
    "gold": "CLaRa: vectors of the gold documents",
    "none": "the same generator, no documents",
    "shuffled": "the same, another question's vectors",
    "bm25": "CLaRa: vectors of what BM25 chooses",
    "tuned_text": "text baseline (own LoRA): gold documents",
    "tuned_text_bm25": "text baseline (own LoRA): what BM25 chooses",
    "tuned_closed_book": "closed book (own LoRA)",
    "frozen_text": "backbone as it is: text of the gold documents",
}
RANKINGS = {
    "model": "reasoner, after stage 3",
    "before": "reasoner, before stage 3",
    "bm25": "BM25",
}


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Return what `report` has measured (``report.json``) as Markdown."""
    asked = facts["questions"]
    count = f"{asked['answered']} held-out questions"
    if asked["answered"] < asked["of"]:
        count += f" (of {asked['of']}, for which there was time)"
    differences = [
        [NAMES[one], NAMES[other], f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"]
        for one, other, mean, low, high in facts["all"]["differences"]
    ]

    def split(counts: Mapping[str, int]) -> str:
        return f"{counts['train']:,} / {counts['held_out']:,}"

    data = [
        [name, own["licence"], split(own["passages"]), split(own["questions"])]
        for name, own in facts["mix"].get("sources", {}).items()
    ]
    columns = ["data", "licence", "passages: train / held out", "questions"]
    lines = [
        f"# {facts['name']}: {facts['backbone']} at {facts['rate']}x",
        "",
        f"{count} about passages that no stage was trained on; {facts['vectors']} "
        f"vectors a passage, the best {facts['top_k']} of {facts['candidates']} "
        "candidates in the prompt; answers decoded in full; 95% intervals by bootstrap "
        "over questions.",
        *(line for text in remarks(facts["all"]) for line in ("", f"Note: {text}.")),
        *answers_table("answers", facts["all"], NAMES),
        *_by_source_table(facts),
        *markdown_table(["this", "over that", "F1"], differences),
        *_retrieval_table(facts),
        *_training_table(facts),
        *markdown_table(columns, data),
    ]
    return "\n".join(lines) + "\n"


def _by_source_table(facts: Mapping[str, Any]) -> list[str]:
    sources = facts["sources"].values()

    def cells(kind: str, name: str, metrics: Iterable[str]) -> list[str]:
        found = [source[kind].get(name, {}) for source in sources]
        return [_joined(", ", (f[m]["mean"] for m in metrics if f)) for f in found]

    rows = [
        [NAMES[name], *cells("answers", name, SHOWN)]
        for name in facts["all"]["answers"]
    ]
    recalls = [f"recall@{k}" for k in measure.KS]
    rows += [
        [f"{label}: Recall@1, @5", *cells("retrieval", name, recalls)]
        for name, label in RANKINGS.items()
        if name in facts["all"]["retrieval"]
    ]
    columns = [f"{name} ({s['questions']})" for name, s in facts["sources"].items()]
    title = "EM, F1, cover-EM by source (questions)"
    return markdown_table([title, *columns], rows)


def _joined(between: str, numbers: Iterable[float]) -> str:
    return between.join(f"{number:.3f}" for number in numbers)


def _retrieval_table(facts: Mapping[str, Any]) -> list[str]:
    found, whole = facts["all"]["retrieval"], facts["corpus"]
    names = [name for name in RANKINGS if name in found]
    if not names:
        return []
    columns = ["ranking", *(f"Recall@{k} of {facts['candidates']}" for k in measure.KS)]
    rows = [[RANKINGS[name], *found[name].values()] for name in names]
    note = (
        "Recall over the whole corpus is not known: no gold document of these "
        "questions is in the part that was compressed"
    )
    if whole is not None:
        columns += [f"Recall@{k} of {whole['passages']:,}" for k in measure.KS]
        for name, row in zip(names, rows, strict=True):
            row += whole["rankings"][name].values()
        count = f"{whole['questions']} of {facts['questions']['answered']} questions"
        note = f"Over the corpus: {count}, whose gold documents are in it"
        if whole["passages"] < whole["of"]:
            note += f"; of its {whole['of']:,} passages there was time for the first"
    return [*markdown_table(columns, rows), "", f"{note}."]


def _training_table(facts: Mapping[str, Any]) -> list[str]:
    rows = []
    for stage in facts["training"]:
        cut, share = stage["cut"], stage["product_share"]
        row = {
            "training": stage["name"],
            "steps": f"{stage['steps']:,}"
            + (f" of {cut['of']:,} (time)" if cut else ""),
            "time": f"{stage['seconds']:,.0f} s",
            "tokens": f"{stage['tokens']:,}",
            "tokens/s": f"{stage['tokens_per_s']:,.0f}",
            "of the product": f"{share:.1%}" if share else "",
            "loss, first to last tenth": _joined(" to ", stage["loss"] or ()),
            "held out, stage 1: gold / another's vectors": _joined(
                " / ", stage["held_out"].values()
            ),
        }
        rows.append(row)
    best = facts["product_flops"] / 1e12
    note = (
        f"On {facts['device']}, whose best matrix product in this run made {best:.3g} "
        "TFLOP/s; operations are counted as 4 a token and weight of the layers, "
        "padding, adapters, head and attention left out. Time includes start-up, "
        "compilation and evaluations."
    )
    values = [list(row.values()) for row in rows]
    return [*markdown_table(list(rows[0]), values), "", note]
