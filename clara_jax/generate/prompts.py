"""Prompts to token ids, refusing what cannot be answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer, Prompt, plain


def refuse_empty(texts: Sequence[str], name: str) -> None:
    """Refuse texts of white space only.

    Args:
      texts: documents or questions.
      name: what the error calls them; ``{}`` stands for the number, counted from 1.

    Raises:
      ClaraError: at the first such text.
    """
    for i, text in enumerate(texts):
        if not plain(text).strip():
            raise ClaraError(f"{name.format(i + 1)} is empty; give it some text")


def refuse_long(
    tokenizer: ClaraTokenizer, questions: Sequence[str], limit: int
) -> None:
    """Refuse questions of more than `limit` tokens.

    Raises:
      ClaraError: at the first such question.
    """
    for i, question in enumerate(questions):
        found = tokenizer.document_length(question)
        if found > limit:
            raise ClaraError(
                f"question {i + 1} has {found} tokens, above the limit {limit}; "
                "shorten it"
            )


def encode_prompts(
    tokenizer: ClaraTokenizer,
    prompts: Sequence[Prompt],
    limit: int | None = None,
    cut: bool = False,
) -> list[list[int]]:
    """Render prompts with the chat template, open for an answer.

    Args:
      tokenizer: with special tokens.
      prompts: system and user texts.
      limit: longest prompt in tokens; None for no limit.
      cut: cut longer prompts on the right, as the original does, unless that would
        cut off a document.

    Returns:
      Token ids per prompt.

    Raises:
      ClaraError: a prompt above the limit.
    """
    rows = [tokenizer.encode(tokenizer.chat(*prompt)) for prompt in prompts]
    if limit is None:
        return rows
    for i, row in enumerate(rows):
        rest = row[limit:]
        if rest and (not cut or np.isin(rest, tokenizer.memory_ids).any()):
            raise ClaraError(
                f"the prompt of question {i + 1} has {len(row)} tokens, above the "
                f"limit {limit}; give fewer documents or a shorter question"
            )
    return [row[:limit] for row in rows]
