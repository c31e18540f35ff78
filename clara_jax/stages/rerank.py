"""The supervised baseline of stage 3: the reasoner is told the right documents."""

from clara_jax.clara import Loss, RerankLoss
from clara_jax.config import RunConfig
from clara_jax.data import Dialogue, Draw, ExampleMaker, Record
from clara_jax.stages.end_to_end import Ranking
from clara_jax.text import answer_prompt


class Reranking(Ranking):
    """The supervised baseline: a reranker that is told which candidates are right.

    Each row has C candidates and a question; records must say their positives.
    """

    name = "rerank"
    trains = ("reasoner",)

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
