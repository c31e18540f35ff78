"""What is asked for: settings of answers, prompts as rows, and refusals."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from clara_jax.clara import Network
from clara_jax.errors import ClaraError
from clara_jax.generate.decode import DecodeConfig, Sampling
from clara_jax.text import PARAPHRASES, ClaraTokenizer, Prompt, plain

_TRAINED_BY = {"compressor": "scp", "generator": "scp", "reasoner": "end_to_end"}


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How answers are made.

    Attributes:
      max_new_tokens: longest answer.
      sampling: greedy by default.
      seed: of the draws, and of paraphrase instructions.
      eos_ids: end tokens; empty takes the tokenizer's.
      batch_size: rows read together.
      prompt_max_length: longest prompt with document slots, in tokens.
      question_max_length: longest question for the reasoner; 0 takes doc_max_length.
      too_long: what to do with a longer question or prompt: ``error`` or ``cut``.
    """

    max_new_tokens: int = 64
    sampling: Sampling = Sampling()
    seed: int = 0
    eos_ids: tuple[int, ...] = ()
    batch_size: int = 8
    prompt_max_length: int = 1024
    question_max_length: int = 0
    too_long: Literal["error", "cut"] = "error"

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "prompt_max_length"):
            if getattr(self, name) < 1:
                raise ClaraError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ClaraError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")

    def decoding(self, tokenizer: ClaraTokenizer) -> DecodeConfig:
        """Return the static settings of decoding with this tokenizer."""
        return DecodeConfig(
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.eos_ids or (tokenizer.eos_id,),
            pad_id=tokenizer.pad_id,
            sampling=self.sampling,
        )


class Selection(NamedTuple):
    """Answers and what they were answered from.

    Attributes:
      answers: one per question.
      indices: ``[B, J]`` chosen candidates, best first.
      scores: ``[B, C]`` cosines of all candidates; minus infinity where there is none.
    """

    answers: list[str]
    indices: np.ndarray
    scores: np.ndarray


def require_role(network: Network, role: str) -> None:
    """Refuse to play a role that a model was not trained for."""
    if role not in network.adapters:
        raise ClaraError(
            f"this model has no {role}, which stage {_TRAINED_BY[role]} trains; "
            f"run that stage and give its folder"
        )


def refuse_empty(texts: Sequence[str], name: str) -> None:
    """Refuse texts of white space only; in `name`, ``{}`` stands for their number."""
    for i, text in enumerate(texts):
        if not plain(text).strip():
            raise ClaraError(f"{name.format(i + 1)} is empty; give it some text")


def draw_instructions(seed: int, count: int) -> list[int]:
    """Draw which of `PARAPHRASES` asks for each of `count` paraphrases."""
    draw = random.Random(seed)
    return [draw.choice(range(len(PARAPHRASES))) for _ in range(count)]


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
      limit: longest prompt in tokens, if there is a limit.
      cut: cut longer prompts on the right, as the original does, unless that would
        cut off a document.

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
