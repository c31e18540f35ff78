"""Evaluators: what a training run measures on held-out data.

An evaluator's ``run(state)`` yields (name, value) pairs. It is built with everything
that training does not change, the compiled programs included, and reads only
``state.trainable``, so the same object serves every evaluation of a run.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from clara_jax.clara import Batch, Network
from clara_jax.data.records import Record
from clara_jax.errors import ClaraError
from clara_jax.evaluate.metrics import score_answers, score_retrieval
from clara_jax.generate import Clara
from clara_jax.search import Store
from clara_jax.search.exact import Searcher
from clara_jax.shapes import Bool, Float, Int, Params

Result = tuple[str, float]


@runtime_checkable
class Trained(Protocol):
    """A training state, as far as evaluators know it."""

    trainable: Mapping[str, Params]


@runtime_checkable
class Evaluator(Protocol):
    """Measures a state on held-out data."""

    def run(self, state: Any) -> Iterable[Result]:
        """Yield (name, value) pairs."""
        ...


@dataclasses.dataclass
class HeldOutLoss:
    """The stage's own loss, without dropout.

    Attributes:
      eval_step: ``(trainable, network, batch) -> (sums, weights, metrics)``.
      network: all that is frozen.
      batches: gives the held-out batches, anew at every call.
      put: moves a batch to the devices.
      shuffled: see `shuffle_documents`: what is lost by it is what the memory is worth.
    """

    eval_step: Callable[..., Any]
    network: Network
    batches: Callable[[], Iterable[Batch]]
    put: Callable[[Batch], Batch] = jax.device_put
    shuffled: bool = False

    def __post_init__(self) -> None:
        self._step = jax.jit(self.eval_step)

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``loss``, ``loss/<term>`` and the loss's ``held_out/<metric>``.

        Sums and weights are added up over all batches and divided once.
        """
        totals: dict[str, np.ndarray] = {}
        trainable = dict(state.trainable)
        for batch in self.batches():
            given = self.put(shuffle_documents(batch) if self.shuffled else batch)
            sums, weights, metrics = self._step(trainable, self.network, given)
            pairs = {f"loss/{name}": (sums[name], weights[name]) for name in sums}
            pairs |= {f"held_out/{name}": pair for name, pair in metrics.items()}
            for name, pair in jax.device_get(pairs).items():
                totals[name] = totals.get(name, 0) + np.asarray(pair, np.float64)
        means = {name: float(s / w) for name, (s, w) in totals.items() if w > 0}
        terms = [mean for name, mean in means.items() if name.startswith("loss/")]
        if terms:
            means = {"loss": sum(terms), **means}
        prefix = "shuffled/" if self.shuffled else ""
        yield from ((f"{prefix}{name}", mean) for name, mean in means.items())


def shuffle_documents(batch: Batch) -> Batch:
    """Give every row of a batch the documents of the row before it, in a ring.

    Empty rows, which are at the end of the numpy arrays, stay.
    """
    documents = batch.documents
    assert documents is not None, "only stages that read documents can be shuffled"
    count = int(np.any(documents.mask, axis=(1, 2)).sum())
    order = np.arange(len(documents.mask))
    order[:count] = np.roll(order[:count], 1)
    chosen = jax.tree.map(lambda x: x[order], documents)
    return dataclasses.replace(batch, documents=chosen)


@dataclasses.dataclass(frozen=True)
class Question:
    """One held-out question.

    Attributes:
      gold: answers that count as right; empty when unknown, as in a test set.
      documents: candidates.
      positives: indices of those that hold the answer; empty when unknown.
      missing: number of documents that hold the answer and are not candidates.
      id: its name in the data set.
      places: of the documents in the data set; empty for 0, 1, 2 and so on.
    """

    question: str
    gold: tuple[str, ...]
    documents: tuple[str, ...]
    positives: tuple[int, ...] = ()
    missing: int = 0
    id: str = ""
    places: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    @property
    def gold_documents(self) -> tuple[str, ...]:
        """Return the documents that hold the answer; all where none is known to."""
        return tuple(self.documents[i] for i in self.positives) or self.documents

    @property
    def gold_unknown(self) -> bool:
        """Whether there are several documents, and none is known to hold the answer."""
        return not self.positives and (len(self.documents) != 1 or self.missing > 0)


def questions_of(records: Iterable[Record], limit: int = 0) -> list[Question]:
    """Return the first questions of records, each with its own answers; 0 takes all."""
    questions = (
        Question(
            *(question, gold, record.documents, record.positives, record.missing),
            id=record.question_id(i),
            places=record.places,
        )
        for record in records
        for i in range(len(record.questions) if record.kind == "qa" else 0)
        for question, _, gold in [record.pair(i)]
    )
    return list(itertools.islice(questions, limit or None))


@dataclasses.dataclass
class _Asked:
    """Held-out questions, and the model with the frozen adapters that is asked."""

    clara: Clara
    questions: Sequence[Question]
    _kept: tuple[Any, Any] | None = dataclasses.field(default=None, init=False)

    @property
    def texts(self) -> list[str]:
        return [question.question for question in self.questions]

    @property
    def gold(self) -> list[tuple[str, ...]]:
        return [question.gold_documents for question in self.questions]

    def gather(
        self, clara: Clara, rows: Sequence[Sequence[str]], state: Trained
    ) -> tuple[Float[np.ndarray, "B C M D"], Bool[np.ndarray, "B C"]]:
        """Compress documents; what is made by frozen adapters is kept between runs."""
        if state.trainable.keys() & {"compressor", "memory", "backbone"}:
            return clara.gather(rows)
        self._kept = self._kept or clara.gather(rows)
        return self._kept

    def scores(self, prefix: str, answers: Sequence[str]) -> Iterator[Result]:
        """Yield the scores of answers as ``prefix/name``, where right ones are known.

        ``prefix/without_answers`` is the number of others, if there are any.
        """
        pairs = zip(answers, self.questions, strict=True)
        known = [(answer, q.gold) for answer, q in pairs if q.gold]
        scores = score_answers([a for a, _ in known], [gold for _, gold in known])
        yield from ((f"{prefix}/{name}", value) for name, value in scores.items())
        if others := len(answers) - len(known):
            yield f"{prefix}/without_answers", float(others)

    def unknown(self, prefix: str) -> Iterator[Result]:
        """Yield for how many questions all documents stand for gold ones, if any."""
        if count := sum(q.gold_unknown for q in self.questions):
            yield f"{prefix}/unknown_documents", float(count)


@dataclasses.dataclass
class CompressedAnswers(_Asked):
    """Answers decoded from the vectors of the gold documents."""

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``gold/exact_match``, ``gold/f1``, ``gold/cover_em``.

        ``gold/unknown_documents`` is the number of questions whose gold documents are
        not known, if there are any: they are answered from all.
        """
        clara = self.clara.with_adapters(state.trainable)
        vectors = self.gather(clara, self.gold, state)
        yield from self.scores("gold", clara.answer_from_vectors(self.texts, *vectors))
        yield from self.unknown("gold")


@dataclasses.dataclass
class SelectedAnswers(_Asked):
    """What the reasoner chooses among the candidates, and the answers from that.

    Attributes:
      ks: cut-offs of recall.
      decode: also answer from the chosen documents; costs most of the time.
    """

    ks: Sequence[int] = (1, 5)
    decode: bool = True

    def __post_init__(self) -> None:
        refuse_top_k(self.clara.selection.top_k, self.questions)

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``recall@k`` for each k and ``selected/exact_match``, ``f1`` etc.

        Recall is measured on questions with known gold documents, and left out without
        any. Those that are not among the candidates count as not found;
        ``missing_documents`` is their number, if there are any.
        """
        clara, texts = self.clara.with_adapters(state.trainable), self.texts
        rows = [question.documents for question in self.questions]
        vectors, mask = self.gather(clara, rows, state)
        ranked, chosen = choose(clara, texts, vectors, mask, clara.selection.top_k)
        positives = [question.positives for question in self.questions]
        missing = [question.missing for question in self.questions]
        if any(positives) or any(missing):
            rows = ranked.tolist()
            recall = score_retrieval(positives, rows, self.ks, missing=missing)
            yield from ((f"recall@{k}", recall[f"recall@{k}"]) for k in self.ks)
        if any(missing):
            yield "missing_documents", float(sum(missing))
        if self.decode:
            best = ranked[:, : chosen.shape[1]]
            picked = vectors[np.arange(len(texts))[:, None], best]
            answers = clara.answer_from_vectors(texts, picked, chosen)
            yield from self.scores("selected", answers)


@dataclasses.dataclass
class TextAnswers(_Asked):
    """Answers from the gold documents' full text: the baseline without compression.

    Attributes:
      role: ``generator``, or None for the plain backbone.
    """

    role: str | None = None

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``text/exact_match`` etc., as `CompressedAnswers` does with vectors."""
        clara = self.clara.with_adapters(state.trainable)
        answers = clara.answer_from_text(self.texts, self.gold, self.role)
        yield from self.scores("text", answers)
        yield from self.unknown("text")


def choose(
    clara: Clara,
    questions: Sequence[str],
    vectors: Float[np.ndarray, "B C M D"],
    mask: Bool[np.ndarray, "B C"],
    top_k: int,
) -> tuple[Int[np.ndarray, "B C"], Bool[np.ndarray, "B J"]]:
    """Rank every question's candidates, of which `mask` exist and which may be few.

    Returns:
      Candidates, best first; and which of the first J, or C if that is less, exist.
    """
    _, scores = clara.select(clara.reason(questions), vectors, 1, mask)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    places = np.arange(min(top_k, mask.shape[1]))
    return ranked, places[None, :] < mask.sum(axis=1)[:, None]


def refuse_top_k(top_k: int, questions: Sequence[Question]) -> None:
    """Refuse a `top_k` below 1, or above every question's number of candidates."""
    most = max((len(q.documents) for q in questions), default=0)
    if top_k < 1:
        raise ClaraError(f"top_k must be above 0, not {top_k}")
    if questions and top_k > most:
        raise ClaraError(
            f"top_k {top_k} is above the number of candidates of every question, at "
            f"most {most}; lower top_k or give more documents"
        )


_AT_ONCE = 256
"""Questions whose documents' vectors are in memory together."""


@dataclasses.dataclass
class CorpusRetrieval(_Asked):
    """What the reasoner finds in a whole store, and the answers from the best of it.

    A question's right documents are known in the store by their text. Questions of
    which one is not there, or not known, do not count for recall, nor do those with
    right documents that are not among their own, whose text is not known.

    Attributes:
      store: the corpus, made by the model's compressor.
      search: over it.
      ks: cut-offs of recall; those above the number of documents are left out.
      decode: also answer from the best ``selection.top_k``; costs most of the time.
    """

    store: Store
    search: Searcher
    ks: Sequence[int] = (1, 5)
    decode: bool = True

    def __post_init__(self) -> None:
        self.ks = sorted({k for k in self.ks if k <= len(self.store)})
        rows = [[q.documents[i] for i in q.positives] for q in self.questions]
        numbers = iter(self.store.find([text for row in rows for text in row]).tolist())
        found = [[next(numbers) for _ in row] for row in rows]
        self._gold = [
            [] if -1 in row or question.missing else row
            for row, question in zip(found, self.questions, strict=True)
        ]

    def run(self, state: Trained) -> Iterator[Result]:
        """Yield ``corpus/recall@k`` for each k and ``corpus/exact_match``, ``f1`` etc.

        ``corpus/left_out`` is the number of questions that do not count for recall.
        """
        clara, texts = self.clara.with_adapters(state.trainable), self.texts
        top_k = min(clara.selection.top_k, len(self.store))
        wide = max([top_k, *self.ks])
        rows, answers = [np.zeros((0, wide), np.int64)], []
        for start in range(0, len(texts), _AT_ONCE):
            asked = texts[start : start + _AT_ONCE]
            queries = clara.reason(asked).reshape(len(asked), -1).astype(np.float32)
            found = self.search(queries, wide)[1]
            rows.append(found)
            if self.decode:
                best = found[:, :top_k]
                shape = (*best.shape, self.store.num_memory, self.store.width)
                vectors = self.store.vectors(best.ravel()).reshape(shape)
                answers += clara.answer_from_vectors(asked, vectors)
        if any(self._gold):
            # A corpus may have a text twice: the lowest row stands for all.
            found = np.concatenate(rows)
            distinct, places = np.unique(found, return_inverse=True)
            lowest = self.store.find(self.store.strings(distinct, "text"))
            chosen = lowest[places.reshape(found.shape)].tolist()
            recall = score_retrieval(self._gold, chosen, self.ks)
            yield from ((f"corpus/recall@{k}", recall[f"recall@{k}"]) for k in self.ks)
        yield "corpus/left_out", float(sum(not gold for gold in self._gold))
        if self.decode:
            yield from self.scores("corpus", answers)
