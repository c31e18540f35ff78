"""Language modelling: the whole backbone learns to continue text.

Rows are ``<bos>text<eos>``, all supervised; of question records, the conversation with
its documents as text.
"""

import numpy as np

from clara_jax.clara import Loss, TextLoss
from clara_jax.config import RunConfig, require
from clara_jax.data import Draw, Example, ExampleMaker, Record
from clara_jax.stages.base import Reads, Stage
from clara_jax.text import answer_prompt, plain


class LanguageModelling(Stage):
    """Train a backbone of one's own, before any adapter."""

    name = "lm"
    trains = ("backbone",)

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        return (Reads("prompt", "backbone"),)

    def example(
        self,
        make: ExampleMaker,
        record: Record,
        draw: Draw | None = None,
        candidate_ids: np.ndarray | None = None,
    ) -> Example:
        """Make one row of text, cut to ``data.prompt_max_length``."""
        tokenizer, text = make.tokenizer, "\n\n".join(record.documents)
        if record.kind == "qa":
            question, answer = make.pair(record, draw)
            prompt = answer_prompt(plain(text), question)
            ids, _ = tokenizer.encode_chat(prompt, answer)
        else:
            ids = tokenizer.encode_text(text)
            if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
                ids = [tokenizer.bos_id, *ids]
            if ids[-1:] != [tokenizer.eos_id]:
                ids = [*ids, tokenizer.eos_id]
        row = np.asarray(ids[: make.config.data.prompt_max_length], np.int32)
        return Example(prompt=row, labels=row, source=record.source)

    def check_record(self, make: ExampleMaker, record: Record) -> None:
        """Accept records of every kind, but for a question without an answer."""
        make.require_answer(record)

    def loss(self, config: RunConfig) -> Loss:
        """Return the cross-entropy of every token."""
        return TextLoss(role=None)

    def check(self, config: RunConfig) -> None:
        """Refuse quantized weights, which do not learn."""
        super().check(config)
        fixed = f"is '{config.quantize}', but stage lm trains the backbone; use none"
        require(config.quantize == "none", "quantize", fixed)
