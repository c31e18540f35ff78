"""Stage 3: the answer's loss alone teaches the reasoner to choose documents."""

from clara_jax.clara import EndToEndLoss, Loss
from clara_jax.config import RunConfig, require
from clara_jax.data import Dialogue, Draw, ExampleMaker, Record
from clara_jax.errors import RecordError
from clara_jax.evaluate import CorpusRetrieval, Evaluator, SelectedAnswers
from clara_jax.stages.base import HeldOut, Reads, Stage
from clara_jax.text import answer_prompt


class Ranking(Stage):
    """A question and its candidates, which are frozen: what both stages have."""

    copies = {"reasoner": "compressor"}  # noqa: RUF012

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        cached = config.data.cache_vectors or config.store
        how = ("vectors", "") if cached else ("candidates", "compressor")
        candidates = Reads(*how, per_row=config.data.candidates, trained=False)
        return Reads("question", "reasoner"), candidates

    def evaluators(self, held_out: HeldOut) -> list[Evaluator]:
        """Add what is chosen, and where the stage has answers what is answered.

        The loss, and selection among candidates, need candidates that records bring.
        With a store, what is found in all of it is measured too, whatever training
        takes.
        """
        config, questions = held_out.config, held_out.questions
        given, measure = config.candidates == "given", set(config.hooks.measure)
        found = super().evaluators(held_out) if given else []
        decode = self.retrieves(config) and "answers" in measure
        if not questions or not {"answers", "recall"} & measure:
            return found
        clara, top_k = held_out.clara, config.selection.top_k
        if given:
            ks = tuple(sorted({1, top_k}))
            found.append(SelectedAnswers(clara, questions, ks=ks, decode=decode))
        if held_out.store is not None:
            ks = (1, 5, top_k, max(1, config.data.candidates))
            corpus = held_out.store, held_out.searcher(), ks
            found.append(CorpusRetrieval(clara, questions, *corpus, decode))
        return found


class EndToEnd(Ranking):
    """Stage 3, end-to-end training (paper section 3.3).

    Each row has C candidates, the question twice (for reasoner and generator) and its
    answer; which candidates hold the answer is not used. With candidates out of a
    corpus, records bring none: what is nearest in the store takes their place.
    """

    name = "end_to_end"
    trains = ("reasoner", "generator")

    def trained(self, config: RunConfig) -> tuple[str, ...]:
        """Leave the generator out where ``train_generator`` is off."""
        return self.trains if config.train_generator else ("reasoner",)

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        return (*super().reads(config), Reads("prompt", "generator"))

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Ask one question, to be answered from the J documents that are selected."""
        make.require_question(record)
        slots = make.config.selection.top_k
        if not make.corpus:
            make.require_documents(record)
        if len(record.documents) < slots and not make.corpus:
            raise RecordError(
                record.source,
                f"has {len(record.documents)} candidate documents, "
                f"fewer than selection.top_k {slots}; lower it",
            )
        question, answer = make.pair(record, draw)
        prompt = answer_prompt(make.slots(slots), question)
        return Dialogue(prompt, answer, record.documents, question)

    def loss(self, config: RunConfig) -> Loss:
        """Return the cross-entropy of the answer."""
        return EndToEndLoss(config.selection)

    def check(self, config: RunConfig) -> None:
        """Refuse a corpus without a store, or with too few documents a question."""
        super().check(config)
        if config.candidates != "corpus":
            return
        require(
            bool(config.store),
            "store",
            "is empty, but candidates is 'corpus'; give the folder that "
            "clara_jax.compress has made",
        )
        count, top_k = config.data.candidates, config.selection.top_k
        require(
            count >= top_k,
            "data.candidates",
            f"is {count}, but with a corpus it says how many documents are searched "
            f"for; set at least selection.top_k {top_k}",
        )
