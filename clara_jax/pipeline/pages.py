"""What a report looks like: the table of scores, and the card of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara_jax.convert import ModelFolder
from clara_jax.evaluate.scores import LABELS, SHOWN, markdown_table

_CARD = """\
# {name}: CLaRa adapters for {base}

LoRA adapters of rank {rank} in bfloat16: {roles}.
{reads}

- Stage `{stage}`: {steps:,} steps, {tokens:,} tokens, loss {loss}; on {device}, with
  {versions}.{cut}
{scores}
## Data

{data}
## Limits

A model of this size knows little and errs often: read its answers beside the sources it
names. What it was trained on is listed above; other languages and domains were not
measured. Texts beyond {length} tokens are cut, or split by the commands.
"""

_READS = """\
A document of up to {length} tokens becomes {vectors} vectors ({rate}x).

    clara = clara_jax.load("{name}")"""

_TEXT = "A baseline: it reads documents as text, or none at all."


def card(
    name: str,
    base: str,
    model: ModelFolder,
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    scores: str = "",
) -> str:
    """Write the card.

    Args:
      name: what the model is called. base: its backbone.
      model: with its settings.
      summary: of the run that trained it.
      manifest: of the data that were mixed for it; may be empty.
      scores: Markdown with what was measured, if anything was.

    Returns:
      Markdown.
    """
    clara = model.clara
    assert clara is not None and model.adapters is not None
    cut, compresses = summary.get("cut"), "compressor" in model.adapters
    versions = summary["versions"]
    rows = [
        f"- {source}: {about['licence']}"
        + (f" ({about['origin']})" if about.get("origin") else "")
        for source, about in manifest.get("sources", {}).items()
    ]
    text = _CARD.replace("{reads}", _READS if compresses else _TEXT)
    return text.format(
        name=name,
        base=base,
        roles=", ".join(sorted(set(model.adapters) - {"memory"})),
        rank=clara.lora.rank,
        length=clara.memory.doc_max_length,
        vectors=clara.memory.num_memory,
        rate=clara.memory.compression_rate,
        stage=summary["stage"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        loss=f"{summary['final'].get('loss', float('nan')):.3f}",
        device=summary["device"]["kind"],
        versions=f"clara_jax {versions['clara_jax']} and jax {versions['jax']}",
        cut=f" Cut by its deadline, of {cut['of']:,} steps." if cut else "",
        scores=f"\n## Scores\n\n{scores}" if scores else "",
        data="\n".join(rows) + "\n" if rows else "Not recorded.\n",
    )


NAMES = {
    **LABELS,
    "model": "CLaRa: vectors of what the reasoner chooses",
    "gold": "CLaRa: vectors of the gold documents",
    "none": "  the same generator, no documents",
    "shuffled": "  the same, another question's vectors",
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
    """Return a report as Markdown.

    Args:
      facts: what `report` measures; see ``report.json``.
    """
    asked = facts["questions"]
    count = f"{asked['answered']} held-out questions"
    if asked["answered"] < asked["of"]:
        count += f" (of {asked['of']}, for which there was time)"
    lines = [
        f"# {facts['name']}: {facts['backbone']} at {facts['rate']}x",
        "",
        f"{count} about passages that no stage was trained on; {facts['vectors']} "
        f"vectors a passage, the best {facts['top_k']} of {facts['candidates']} "
        "candidates in the prompt; answers decoded in full; 95% intervals by bootstrap "
        "over questions.",
        *_answers(facts),
        *_by_source(facts),
        *_differences(facts),
        *_retrieval(facts),
        *_training(facts),
        *_data(facts),
    ]
    return "\n".join(lines) + "\n"


def _answers(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [NAMES[name].strip(), *(values[metric] for metric in SHOWN)]
        for name, values in facts["all"]["answers"].items()
    ]
    return ["", *markdown_table(["answers", *SHOWN.values()], rows)]


def _by_source(facts: Mapping[str, Any]) -> list[str]:
    sources = facts["sources"]
    rows = [
        [
            NAMES[name].strip(),
            *(_three(s["answers"][name]) for s in sources.values()),
        ]
        for name in facts["all"]["answers"]
    ]
    rows += [
        [
            f"{label}: Recall@1, @5",
            *(_recalls(s["retrieval"].get(name, {})) for s in sources.values()),
        ]
        for name, label in RANKINGS.items()
        if name in facts["all"]["retrieval"]
    ]
    columns = [f"{name} ({s['questions']})" for name, s in sources.items()]
    title = "EM, F1, cover-EM by source (questions)"
    return ["", *markdown_table([title, *columns], rows)]


def _three(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{values[metric]['mean']:.3f}" for metric in SHOWN)


def _recalls(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{value['mean']:.3f}" for value in values.values())


def _differences(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            NAMES[one].strip(),
            NAMES[other].strip(),
            f"{mean:+.3f} ({low:+.3f} to {high:+.3f})",
        ]
        for one, other, mean, low, high in facts["all"]["differences"]
    ]
    return ["", *markdown_table(["this", "over that", "F1"], rows)]


def _retrieval(facts: Mapping[str, Any]) -> list[str]:
    found = facts["all"]["retrieval"]
    whole = facts["corpus"]
    count = facts["candidates"]
    columns = ["ranking", *(f"Recall@{k} of {count}" for k in (1, 5))]
    if whole is not None:
        columns += [f"Recall@{k} of {whole['passages']:,}" for k in (1, 5)]
    rows: list[Any] = []
    for name, label in RANKINGS.items():
        if name in found:
            row = [label, *found[name].values()]
            if whole is not None:
                row += whole["rankings"][name].values()
            rows.append(row)
    if not rows:
        return []
    lines = ["", *markdown_table(columns, rows)]
    if whole is None:
        why = "no gold document of these questions is in the part that was compressed"
        return [*lines, "", f"Recall over the whole corpus is not known: {why}."]
    count, of = whole["questions"], facts["questions"]["answered"]
    note = f"Over the corpus: {count} of {of} questions, whose gold documents are in it"
    if whole["passages"] < whole["of"]:
        note += f"; of its {whole['of']:,} passages there was time for the first"
    return [*lines, "", f"{note}."]


def _training(facts: Mapping[str, Any]) -> list[str]:
    rows = []
    for stage in facts["training"]:
        steps, cut = f"{stage['steps']:,}", stage["cut"]
        loss, held = stage["loss"], stage["held_out"]
        share = stage["product_share"]
        rows.append(
            [
                stage["name"],
                f"{steps} of {cut['of']:,} (time)" if cut else steps,
                f"{stage['seconds']:,.0f} s",
                f"{stage['tokens']:,}",
                f"{stage['tokens_per_s']:,.0f}",
                f"{share:.1%}" if share else "",
                f"{loss[0]:.3f} to {loss[1]:.3f}" if loss else "",
                " / ".join(f"{value:.3f}" for value in held.values()),
            ]
        )
    columns = [
        "training",
        "steps",
        "time",
        "tokens",
        "tokens/s",
        "of the product",
        "loss, first to last tenth",
        "held out, stage 1: gold / another's vectors",
    ]
    best = facts["product_flops"] / 1e12
    note = (
        f"On {facts['device']}, whose best matrix product in this run made {best:.3g} "
        "TFLOP/s; operations are counted as 4 a token and weight of the layers, "
        "padding, adapters, head and attention left out. Time includes start-up, "
        "compilation and evaluations."
    )
    return ["", *markdown_table(columns, rows), "", note]


def _data(facts: Mapping[str, Any]) -> list[str]:
    sources = facts["mix"].get("sources", {})
    rows = [
        [
            name,
            source["licence"],
            f"{source['passages']['train']:,} / {source['passages']['held_out']:,}",
            f"{source['questions']['train']:,} / {source['questions']['held_out']:,}",
        ]
        for name, source in sources.items()
    ]
    columns = ["data", "licence", "passages: train / held out", "questions"]
    return ["", *markdown_table(columns, rows)]
