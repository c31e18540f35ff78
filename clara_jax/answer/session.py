"""A loaded model with compressed documents, to be asked any number of questions.

Documents are compressed now and kept in memory (`Given`), or lie in a store (`Stored`).
Both number them, search, and give vectors and texts by number.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax.data import split_documents
from clara_jax.documents import Document, is_unicode
from clara_jax.errors import ClaraError
from clara_jax.files import json_line
from clara_jax.generate import Clara, Spoken
from clara_jax.generate.batched import AnyArray, refuse_long
from clara_jax.native import Gone
from clara_jax.search.exact import Searcher, meeting
from clara_jax.shapes import Float

Found = tuple[list[int], tuple[float, ...]]
"""Numbers of documents, best first, and their cosines with the question."""


class Stopwatch:
    """Seconds by part; call it for a context around a part."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to part `name`."""
        start = time.perf_counter() - self.seconds.get(name, 0.0)
        yield
        self.seconds[name] = time.perf_counter() - start


class Given:
    """Documents, at least one, compressed now and kept in memory."""

    def __init__(self, clara: Clara, documents: Sequence[Document]):
        self._documents = tuple(documents)
        texts = [document.text for document in documents]
        step, parts = 8 * clara.config.batch_size, []
        with tqdm(desc="compress", total=len(texts), unit="doc", delay=2) as bar:
            for begin in range(0, len(texts), step):
                parts.append(clara.compress(texts[begin : begin + step]))
                bar.update(len(parts[-1]))
        self._vectors = np.concatenate(parts)

    def renew(self) -> None:
        """Do nothing: these documents stay."""

    def numbers(self) -> list[int]:
        """Return the numbers of all documents, in order."""
        return list(range(len(self._documents)))

    def search(self, clara: Clara, question: str, top_k: int) -> Found:
        """Compare the question with every document."""
        query = clara.reason([question])
        (chosen,), (cosines,) = clara.select(query, self._vectors, top_k)
        return chosen.tolist(), tuple(cosines[chosen].tolist())

    def vectors(self, clara: Clara, chosen: Sequence[int]) -> Float[AnyArray, "J M D"]:
        """Return the vectors of documents."""
        return self._vectors[list(chosen)]

    def documents(self, chosen: Sequence[int]) -> tuple[Document, ...]:
        """Return documents by number."""
        return tuple(self._documents[i] for i in chosen)


class Stored:
    """Documents of a store, at least one, found by a searcher over it.

    The model that is going to ask must have made the store. `where` is a condition on
    the documents, see ``Store.where``.
    """

    def __init__(self, searcher: Searcher, where: str | None = None):
        self._searcher, self._where = searcher, where
        store = searcher.store
        if not len(store):
            raise ClaraError(
                f"{store.place}: holds no documents; compress some into it"
            )
        self._count = len(store if where is None else meeting(store, where))

    def __len__(self) -> int:
        return self._count

    def renew(self) -> None:
        """Go on with the newest version of the store."""
        self._searcher.renew()
        self._count = len(self.numbers())

    def numbers(self) -> list[int]:
        """Return the numbers of all documents, in order."""
        store, where = self._searcher.store, self._where
        return (store.ids if where is None else store.where(where)).tolist()

    def search(self, clara: Clara, question: str, top_k: int) -> Found:
        """Search the store."""
        query = clara.reason([question])
        flat = np.asarray(query, np.float32).reshape(1, -1)
        with clara.watch("search"):
            found = self._searcher(flat, top_k, [question], self._where)
        (scores,), (ids,) = found
        return ids.tolist(), tuple(scores.tolist())

    def vectors(self, clara: Clara, chosen: Sequence[int]) -> Float[AnyArray, "J M D"]:
        """Read the vectors of documents, in the model's compute type."""
        with clara.watch("gather"):
            found = self._searcher.store.vectors(chosen)
        return found.astype(clara.network.model.config.dtype)

    def documents(self, chosen: Sequence[int]) -> tuple[Document, ...]:
        """Read documents by number."""
        return tuple(self._searcher.store.pieces(chosen))


def check_question(clara: Clara, question: str) -> None:
    """Refuse a question that is empty, not Unicode, or too long for the reasoner."""
    if not question.strip():
        raise ClaraError("the question is empty")
    if not is_unicode(question):
        raise ClaraError("the question is no Unicode text; type it in UTF-8")
    if clara.config.too_long == "error" and "reasoner" in clara.network.adapters:
        limit = clara.question_limit
        refuse_long([question], "the question", clara.tokenizer, limit)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and where it comes from.

    Attributes:
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
    """Documents with their vectors, and questions about them.

    Args:
      clara: the model.
      documents: at least one, compressed now; or a store of compressed ones.
      top_k: J, documents to answer from, `ClaraError` if above their number; None takes
        the trained number, or all documents where there are fewer.
      split: cut documents that are longer than the model reads into pieces that are
        not, where the reasoner can choose among them.

    Attributes:
      pieces: how many documents there are, long ones counted in pieces.
      selects: whether the reasoner chooses. Without one, all documents are read in the
        order given; more than `top_k` are refused.
      seconds: what compressing took.
      cut_documents: how many documents are longer than the model reads.
    """

    def __init__(
        self,
        clara: Clara,
        documents: Sequence[Document] | Stored,
        top_k: int | None = None,
        *,
        split: bool = True,
    ):
        self._clara = clara
        self.selects = "reasoner" in clara.network.adapters
        limit = clara.memory.doc_max_length
        if not isinstance(documents, Stored) and split and self.selects:
            documents = split_documents(documents, clara.tokenizer, limit)
        self.pieces = count = len(documents)
        if not count:
            raise ClaraError("there are no documents to answer from; give some")
        if top_k is not None and not 1 <= top_k <= count:
            raise ClaraError(
                f"top_k {top_k} must be between 1 and the number of documents {count}"
            )
        self.top_k = min(clara.selection.top_k, count) if top_k is None else top_k
        if not self.selects and self.top_k < count:
            raise ClaraError(
                f"this model has no reasoner, which stage end_to_end trains, to choose "
                f"{self.top_k} of {count} documents; give at most {self.top_k} "
                f"documents, or read all with --top-k {count}"
            )
        watch = Stopwatch()
        self.seconds, self.cut_documents = watch.seconds, 0
        self._shelf: Given | Stored
        if isinstance(documents, Stored):
            self._shelf = documents
        else:
            length = clara.tokenizer.document_length
            self.cut_documents = sum(length(d.text) > limit for d in documents)
            self._shelf = Given(dataclasses.replace(clara, watch=watch), documents)

    def unknown(self, texts: Sequence[str]) -> int:
        """Return how many texts hold words that the tokenizer has no token for."""
        tokenizer = self._clara.tokenizer
        unknown = tokenizer.base.unk_token_id
        if unknown is None:
            return 0
        return sum(unknown in tokenizer.encode_text(text) for text in texts)

    def explain(self, question: str, count: int = 10) -> list[list[Spoken]]:
        """Return what the reasoner makes of a question; see `Clara.explain`."""
        check_question(self._clara, question)
        (slots,) = self._clara.explain([question], count)
        return slots

    def ask(self, question: str, tell: Callable[[str], object] | None = None) -> Answer:
        """Answer one question; `tell` is given the answer in pieces, as it is decoded.

        Raises:
          ClaraError: it is empty, or longer than the model reads.
        """
        watch = Stopwatch()
        clara = dataclasses.replace(self._clara, watch=watch)
        check_question(self._clara, question)
        try:
            found = self._find(clara, question)
        except Gone:
            # The store was compacted since, or documents were deleted.
            self._shelf.renew()
            found = self._find(clara, question)
        documents, scores, vectors = found
        if tell is None:
            (answer,) = clara.answer_from_vectors([question], vectors[None])
        else:
            answer = ""
            for piece in clara.stream(question, vectors):
                answer += piece
                tell(piece)
            watch.seconds.setdefault("decode", 0.0)  # the first token is prefill's
        return Answer(question, answer, documents, scores, watch.seconds)

    def _find(
        self, clara: Clara, question: str
    ) -> tuple[
        tuple[Document, ...], tuple[float, ...] | None, Float[AnyArray, "J M D"]
    ]:
        """Return the documents to answer from, their cosines and their vectors."""
        chosen, scores = self._shelf.numbers(), None
        if self.selects:
            chosen, scores = self._shelf.search(clara, question, self.top_k)
        vectors = self._shelf.vectors(clara, chosen)
        return self._shelf.documents(chosen), scores, vectors


PARTS = ("reason", "select", "search", "gather", "prefill", "decode")
"""Of an answer's time, in their order."""


def as_text(answer: Answer) -> str:
    """Return question, answer, documents with scores and beginnings, and times."""
    lines = [f"\nquestion: {answer.question}", f"answer:   {answer.answer}"]
    for i, document in enumerate(answer.documents):
        score = "" if answer.scores is None else f"{answer.scores[i]:7.4f}  "
        place = document.source
        if document.parts > 1:
            place = f"{place}, characters {document.start}-{document.stop}".lstrip(", ")
        beginning = " ".join(document.text[:640].split())
        if len(beginning) > 160:
            beginning = beginning[:157].rstrip() + "..."
        lines.append(f"  {i + 1}. {score}{document.label}  ({place})")
        lines.append(f"     {beginning}")
    times = [f"{p} {answer.seconds[p]:.2f} s" for p in PARTS if p in answer.seconds]
    return "\n".join([*lines, "  " + ", ".join(times)])


def as_tokens(slots: Sequence[Sequence[Spoken]]) -> str:
    """Return the tokens nearest to each vector, with their probabilities."""
    lines = ["\nwhat the reasoner's vectors are near to:"]
    for i, slot in enumerate(slots):
        # A token of white space alone is shown as what it is.
        shown = ", ".join(
            f"{(t.token.strip() or t.token)!r} {t.probability:.2f}" for t in slot
        )
        lines.append(f"  {i + 1}. {shown}")
    return "\n".join(lines)


def as_json(answer: Answer, session: Session, explain: int = 0) -> str:
    """Return an answer as one JSON object; for `explain` see `Session.explain`."""
    before = ("id", "title", "part", "parts", "source", "start", "stop")
    documents = [
        {
            **{name: getattr(document, name) for name in before},
            "score": None if answer.scores is None else answer.scores[i],
            "text": document.text,
            "metadata": document.metadata,
        }
        for i, document in enumerate(answer.documents)
    ]
    seconds = {**session.seconds, **answer.seconds}
    values: dict[str, Any] = {
        "question": answer.question,
        "answer": answer.answer,
        "documents": documents,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }
    if explain:
        slots = session.explain(answer.question, explain)
        values["reasoner"] = [[list(token) for token in slot] for slot in slots]
    return json_line(values)
