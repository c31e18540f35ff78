"""A baseline without vectors: documents in the prompt as text."""

import dataclasses

import numpy as np

from clara_jax.clara import Loss, TextLoss
from clara_jax.config import RunConfig
from clara_jax.data import Dialogue, Draw, Example, ExampleMaker, Record
from clara_jax.stages.base import Reads, Stage
from clara_jax.text import answer_prompt, plain


class FullText(Stage):
    """Train a generator of its own on the text of up to J documents."""

    name = "text"
    trains = ("generator",)
    fresh = ("generator",)
    baselines = {"tuned_text": "gold", "tuned_text_bm25": "bm25"}  # noqa: RUF012

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        return (Reads("prompt", "generator"),)

    def texts(self, make: ExampleMaker, record: Record) -> tuple[str, ...]:
        """Return the documents that are read."""
        return make.chosen(record)

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Ask one question, with the documents in full."""
        make.require_question(record)
        background = "\n\n".join(map(plain, self.texts(make, record)))
        question, answer = make.pair(record, draw)
        return Dialogue(answer_prompt(background, question), answer, (), question)

    def example(
        self,
        make: ExampleMaker,
        record: Record,
        draw: Draw | None = None,
        candidate_ids: np.ndarray | None = None,
    ) -> Example:
        """Make the row, of each document as much as the compressor would read."""
        limit, shorten = make.config.memory.doc_max_length, make.tokenizer.shorten
        texts = tuple(shorten(text, limit) for text in self.texts(make, record))
        if texts:
            record = dataclasses.replace(record, documents=texts, positives=())
        return super().example(make, record, draw)

    def loss(self, config: RunConfig) -> Loss:
        """Return the cross-entropy of the answer."""
        return TextLoss()
