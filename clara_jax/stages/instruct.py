"""Stage 2: the generator answers questions from the vectors of several documents."""

from clara_jax.config import RunConfig
from clara_jax.data import Dialogue, Draw, ExampleMaker, Record
from clara_jax.stages.base import Reads
from clara_jax.stages.scp import Pretraining
from clara_jax.text import answer_prompt


class InstructionTuning(Pretraining):
    """Stage 2, compression instruction tuning (paper section 3.2).

    Each row has up to J documents, a question and its answer. Positives come first
    where a record has more documents than J. As in the original the generator is new.
    """

    name = "instruct"
    trains = ("compressor", "generator")
    fresh = ("generator",)

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        documents = Reads("documents", "compressor", per_row=config.selection.top_k)
        return documents, Reads("prompt", "generator")

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Ask one question about the record's documents."""
        make.require_question(record)
        documents = make.chosen(record)
        question, answer = make.pair(record, draw)
        prompt = answer_prompt(make.slots(len(documents)), question)
        return Dialogue(prompt, answer, documents, question)
