"""What the quickstart ends with: a table, a picture, questions with answers."""

from __future__ import annotations

import dataclasses
import json
import shlex
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.config import parse
from clara_jax.convert import load_model
from clara_jax.data import open_records
from clara_jax.evaluate import (
    CompressedAnswers,
    Question,
    SelectedAnswers,
    TextAnswers,
    curves,
    questions_of,
)
from clara_jax.files import write_text
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.loading import load
from clara_jax.synthesize import world
from clara_jax.synthesize.files import Settings
from clara_jax.synthesize.shipped import write_base
from clara_jax.train import Evaluator

SHOWN = 5
"""Questions printed with their answers."""


def report(workdir: str | Path, settings: Mapping[str, Any] | Settings) -> None:
    """Measure what the finished runs have learned, write it down and print it.

    After ``records="stages"``: ``report.json``, ``report.txt`` and ``curves.png`` in
    the folder. After ``"pretraining"``: the backbone as a Hugging Face folder ``base``.

    Args:
      workdir: the pipeline's folder.
      settings: fields of `Settings`.

    Raises:
      ClaraError: a run is missing, or nothing can be written.
    """
    if not isinstance(settings, Settings):
        settings = parse(Settings, settings, "synthesize")
    workdir = Path(workdir)
    if settings.records == "pretraining":
        write_base(load_model(workdir / "lm"), workdir / "base")
        print(f"the base is in {workdir / 'base'}")
        return
    short = AnswerConfig(max_new_tokens=6, batch_size=50)
    before = load(workdir / "instruct", short)
    after = load(workdir / "end_to_end", short)
    questions = questions_of(open_records(workdir / "data" / "held_out.jsonl"))
    numbers = measure(before, after, questions)
    examples = answers(after, questions[:SHOWN])
    lines = [*table(numbers), "", *_shown(examples)]
    text = "\n".join(lines) + "\n"
    facts = {"numbers": numbers, "examples": examples}
    write_text(workdir / "report.json", json.dumps(facts, indent=2) + "\n")
    write_text(workdir / "report.txt", text)
    curves.draw(workdir, ("scp", "instruct", "end_to_end"), workdir / "curves.png")
    print(f"\n{text}\nlearning curves: {workdir / 'curves.png'}\nask your own:")
    print(f"  {_command(workdir, questions[-1].question)}")


def measure(
    before: Clara, after: Clara, questions: Sequence[Question]
) -> dict[str, float]:
    """Run all evaluators on the models before and after stage 3.

    Args:
      before: without a reasoner; a copy of its compressor serves, as stage 3 starts.
      after: the finished model.
      questions: held out, with one right candidate each.

    Returns:
      Name to value.
    """
    start = {**before.adapters, "reasoner": before.adapters["compressor"]}
    before = dataclasses.replace(before, adapters=start)
    documents = sorted({text for q in questions for text in q.documents})
    lengths = [after.tokenizer.document_length(text) for text in documents]
    candidates = len(questions[0].documents)
    found = {
        "questions": float(len(questions)),
        "document_tokens": sum(lengths) / len(lengths),
        "vectors": float(after.memory.num_memory),
        "candidates": float(candidates),
        "chance/recall@1": 1 / candidates,
        "chance/recall@5": min(5 / candidates, 1.0),
        "chance/exact_match": sum(_chance(q) for q in questions) / len(questions),
    }
    parts: dict[str, Evaluator] = {
        "base": TextAnswers(before, questions),
        "before": CompressedAnswers(before, questions),
        "before ": SelectedAnswers(before, questions),
        "after": CompressedAnswers(after, questions),
        "after ": SelectedAnswers(after, questions),
    }
    nothing: Any = types.SimpleNamespace(trainable={})
    for prefix, evaluator in parts.items():
        for name, value in evaluator.run(nothing):
            found[f"{prefix.strip()}/{name}"] = value
    return found


def table(numbers: Mapping[str, float]) -> list[str]:
    """Lay the numbers of `measure` out for people."""
    tokens, vectors = numbers["document_tokens"], numbers["vectors"]
    count, candidates = int(numbers["questions"]), int(numbers["candidates"])
    width = 44

    def row(label: str, *names: str) -> str:
        cells = [f"{numbers[n]:>10.3f}" if n else f"{'':>10}" for n in names]
        return f"{label:<{width}}" + "".join(cells)

    def head(label: str, *names: str) -> list[str]:
        cells = "".join(f"{name:>10}" for name in names)
        return [f"{label:<{width}}{cells}", "-" * (width + 10 * len(names))]

    return [
        f"{count} questions about names that no stage has seen; answers decoded, exact "
        "match",
        "",
        *head("the right document is given", "answers"),
        row("as full text (the frozen base)", "base/text/exact_match"),
        row(
            f"as {vectors:.0f} vectors ({tokens / vectors:.1f}x), after stage 2",
            "before/gold/exact_match",
        ),
        row("  the same, after stage 3", "after/gold/exact_match"),
        row("chance", "chance/exact_match"),
        "",
        *head(
            f"one of {candidates}, most share half its name",
            "answers",
            "Recall@1",
            "Recall@5",
        ),
        *(
            row(
                label,
                f"{stage}/selected/exact_match",
                f"{stage}/recall@1",
                f"{stage}/recall@5",
            )
            for label, stage in (
                ("before stage 3", "before"),
                ("after stage 3 (from the answer loss alone)", "after"),
            )
        ),
        row("chance", "chance/exact_match", "chance/recall@1", "chance/recall@5"),
    ]


def answers(clara: Clara, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Answer a few questions from the candidates that the model chooses."""
    chosen = clara.select_and_answer(
        [q.question for q in questions], [q.documents for q in questions]
    )
    return [
        {
            "question": question.question,
            "answer": answer,
            "gold": question.gold[0],
            "document": question.documents[int(indices[0])],
        }
        for question, answer, indices in zip(
            questions, chosen.answers, chosen.indices, strict=True
        )
    ]


def _shown(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for item in examples:
        verdict = "" if item["answer"] == item["gold"] else f"   (it is {item['gold']})"
        lines += [
            f"{item['question']}  {item['answer']}{verdict}",
            f"    from the vectors of: {item['document']}",
        ]
    return lines


def _chance(question: Question) -> float:
    """Share of an answer of the right kind that is drawn blindly."""
    return 1 / world.count_values(question.gold[0])


def _command(workdir: Path, question: str) -> str:
    documents = workdir / "data" / "documents.jsonl"
    command = ["python", "-m", "clara_jax.answer"]
    command += ["--model", str(workdir / "end_to_end")]
    return shlex.join([*command, "--documents", str(documents), question])
