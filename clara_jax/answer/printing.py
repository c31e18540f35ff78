"""What the command prints of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clara_jax.answer.session import Answer, Session
from clara_jax.generate.explain import Spoken

PARTS = ("reason", "select", "search", "gather", "prefill", "decode")
"""Of an answer's time, in their order."""

_SHOWN = 160
"""Characters of a document that are shown."""


def as_text(answer: Answer) -> str:
    """Question, answer, documents with scores and beginnings, and times."""
    lines = [f"\nquestion: {answer.question}", f"answer:   {answer.answer}"]
    for i, document in enumerate(answer.documents):
        score = "" if answer.scores is None else f"{answer.scores[i]:7.4f}  "
        place = document.source
        if document.parts > 1:
            place = f"{place}, characters {document.start}-{document.stop}".lstrip(", ")
        lines.append(f"  {i + 1}. {score}{document.label}  ({place})")
        lines.append(f"     {_beginning(document.text)}")
    times = [f"{name} {answer.seconds[name]:.2f} s" for name in _parts(answer)]
    return "\n".join([*lines, "  " + ", ".join(times)])


def as_tokens(slots: Sequence[Sequence[Spoken]]) -> str:
    """The tokens nearest to each vector, with their shares of the probability."""
    lines = ["\nwhat the reasoner's vectors are near to:"]
    for i, slot in enumerate(slots):
        # A token of white space alone is shown as what it is.
        shown = ", ".join(
            f"{(t.token.strip() or t.token)!r} {t.probability:.2f}" for t in slot
        )
        lines.append(f"  {i + 1}. {shown}")
    return "\n".join(lines)


def as_json(answer: Answer, session: Session, explain: int = 0) -> str:
    """All of it as one JSON object.

    Args:
      answer: of `session`.
      session: is asked again for what the reasoner is near to.
      explain: how many tokens of that; 0 leaves it out.
    """
    documents = [
        {
            "id": document.id,
            "title": document.title,
            "part": document.part,
            "parts": document.parts,
            "source": document.source,
            "start": document.start,
            "stop": document.stop,
            "score": None if answer.scores is None else answer.scores[i],
            "text": document.text,
            "metadata": document.metadata,
        }
        for i, document in enumerate(answer.documents)
    ]
    seconds = {**session.seconds, **answer.seconds}
    values: dict[str, Any] = {
        "question": answer.question,
        "answer": answer.answer,
        "documents": documents,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }
    if explain:
        slots = session.explain(answer.question, explain)
        values["reasoner"] = [[list(token) for token in slot] for slot in slots]
    return json.dumps(values, ensure_ascii=False)


def _parts(answer: Answer) -> list[str]:
    return [name for name in PARTS if name in answer.seconds]


def _beginning(text: str) -> str:
    """The first words of a text on one line."""
    line = " ".join(text[: 4 * _SHOWN].split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3].rstrip() + "..."
