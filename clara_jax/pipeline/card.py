"""The card of exported adapters: what they are, of what data, under which licences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara_jax.convert import ModelFolder

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
