"""The supervised baseline: a reranker that is told which candidates are right.

Each row has C candidates and a question; records must say their positives. Trains the
reasoner alone, which starts as a copy of the compressor.
"""

from __future__ import annotations

from clara_jax.clara import Loss, RerankLoss
from clara_jax.config import RunConfig
from clara_jax.data import Dialogue, Draw, ExampleMaker, Record
from clara_jax.evaluate import Evaluator
from clara_jax.stages.base import HeldOut, Reads, Stage, ranking_reads
from clara_jax.stages.end_to_end import ranking_evaluators
from clara_jax.text import answer_prompt


class Reranking(Stage):
    """Train the reasoner by contrast, with labelled positives."""

    name = "rerank"
    trains = ("reasoner",)
    copies = {"reasoner": "compressor"}  # noqa: RUF012

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        return ranking_reads(config)

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Ask one question; nothing is to be answered."""
        make.require_question(record)
        question, answer = make.pair(record, draw)
        prompt = answer_prompt(make.slots(make.config.selection.top_k), question)
        return Dialogue(prompt, answer, record.documents, question)

    def loss(self, config: RunConfig) -> Loss:
        """Return the contrastive loss over all candidates."""
        return RerankLoss(config.selection)

    def evaluators(self, held_out: HeldOut) -> list[Evaluator]:
        """Add recall, among candidates and in the store."""
        return ranking_evaluators(super().evaluators(held_out), held_out, decode=False)

    def check(self, config: RunConfig) -> None:
        """Refuse candidates out of a corpus, of which no positives are known."""
        self.refuse_corpus(config)
