"""Stage 1: documents become vectors from which the generator answers."""

from clara_jax.clara import CompressionLoss, Loss
from clara_jax.config import RunConfig
from clara_jax.data import Dialogue, Draw, ExampleMaker, Record, pick
from clara_jax.errors import RecordError
from clara_jax.evaluate import CompressedAnswers, Evaluator
from clara_jax.stages.base import HeldOut, Reads, Stage
from clara_jax.text import PARAPHRASES, paraphrase_prompt, scp_prompt, scp_target


class Pretraining(Stage):
    """Stage 1, salient compressor pretraining (paper section 3.1).

    Each row is one document: the generator gives all its question-answer pairs back
    from the document's vectors, or paraphrases it under one of 13 instructions.
    """

    name = "scp"
    trains = ("compressor", "generator", "memory")
    fresh = ("compressor", "generator", "memory")

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        return Reads("documents", "compressor", per_row=1), Reads("prompt", "generator")

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Ask for the document's questions and answers, or for a paraphrase of it."""
        if record.kind == "text":
            raise make.misfit(record)
        make.require_documents(record)
        if len(record.documents) != 1:
            raise RecordError(
                record.source,
                f"has {len(record.documents)} documents, but stage "
                "scp takes one; use stage instruct",
            )
        make.require_answer(record)
        background = make.slots(1)
        if record.kind == "paraphrase":
            prompt = paraphrase_prompt(background, pick(draw, len(PARAPHRASES)))
            return Dialogue(prompt, record.answers[0], record.documents)
        answers = record.answers[: len(record.questions)]
        target = scp_target(record.questions, answers)
        return Dialogue(scp_prompt(background), target, record.documents)

    def loss(self, config: RunConfig) -> Loss:
        """Return the cross-entropy and the MSE between memory and document states."""
        return CompressionLoss(config.mse_weight)

    def evaluators(self, held_out: HeldOut) -> list[Evaluator]:
        """Add the loss from other records' documents, and answers from the gold ones.

        The former says what the memory is worth.
        """
        found, measure = super().evaluators(held_out), held_out.config.hooks.measure
        if "shuffled" in measure:
            found.append(held_out.loss(shuffled=True))
        questions = held_out.questions if "answers" in measure else ()
        if questions:
            found.append(CompressedAnswers(held_out.clara, questions))
        return found
