"""A loaded model with compressed documents, to be asked any number of questions."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence

from clara_jax.answer.documents import Document
from clara_jax.errors import ClaraError
from clara_jax.generate import Clara


class Stopwatch:
    """Seconds by part; call it for a context around a part."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to part `name`."""
        start = time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + passed


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and where it comes from.

    Attributes:
      question, answer: texts.
      documents: what it was answered from, in the prompt's order.
      scores: their cosines with the question; None where nothing was selected.
      seconds: by part.
    """

    question: str
    answer: str
    documents: tuple[Document, ...]
    scores: tuple[float, ...] | None
    seconds: dict[str, float]


class Session:
    """Documents compressed once, and questions about them.

    Args:
      clara: the model.
      documents: at least one.
      top_k: documents to answer from; None takes the trained number, or all documents
        where there are fewer.

    Attributes:
      top_k: J.
      selects: whether the reasoner chooses. Without one, all documents are read in the
        order given, if they are no more than `top_k`.
      seconds: what compressing took.

    Raises:
      ClaraError: `top_k` above the number of documents, or documents to choose from but
        no reasoner.
    """

    def __init__(
        self, clara: Clara, documents: Sequence[Document], top_k: int | None = None
    ):
        count = len(documents)
        if top_k is not None and not 1 <= top_k <= count:
            raise ClaraError(
                f"top_k {top_k} must be between 1 and the number of documents {count}"
            )
        self.top_k = min(clara.selection.top_k, count) if top_k is None else top_k
        self.selects = "reasoner" in clara.adapters
        if not self.selects and self.top_k < count:
            raise ClaraError(
                f"this model has no reasoner, which stage end_to_end trains, to choose "
                f"{self.top_k} of {count} documents; give at most {self.top_k} "
                f"documents, or read all with --top-k {count}"
            )
        watch = Stopwatch()
        self.documents = tuple(documents)
        self._clara = clara
        self._vectors = dataclasses.replace(clara, watch=watch).compress(
            [document.text for document in documents]
        )
        self.seconds = watch.seconds

    @property
    def cut_documents(self) -> int:
        """How many documents are longer than the model reads."""
        limit = self._clara.memory.doc_max_length
        length = self._clara.tokenizer.document_length
        return sum(length(document.text) > limit for document in self.documents)

    def ask(self, question: str) -> Answer:
        """Answer one question.

        Raises:
          ClaraError: it is empty, or longer than the model reads.
        """
        watch = Stopwatch()
        clara = dataclasses.replace(self._clara, watch=watch)
        if not question.strip():
            raise ClaraError("the question is empty")
        chosen, scores = list(range(len(self.documents))), None
        if self.selects:
            indices, cosines = clara.select(
                clara.reason([question]), self._vectors, self.top_k
            )
            chosen = indices[0].tolist()
            scores = tuple(cosines[0, chosen].tolist())
        vectors = self._vectors[chosen][None]
        (answer,) = clara.answer_from_vectors([question], vectors)
        documents = tuple(self.documents[i] for i in chosen)
        return Answer(question, answer, documents, scores, watch.seconds)
