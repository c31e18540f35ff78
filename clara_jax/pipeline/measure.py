"""Answers and rankings of everything that an experiment has trained, side by side.

The conditions are those of `clara_jax.evaluate.examine`, and ``tuned_text``,
``tuned_text_bm25`` and ``tuned_closed_book``, answered by the LoRA of the text
baselines, and ``frozen_text``, by the backbone as it is. Rankings are those of the
reasoner, of the reasoner before stage 3 (the compressor's copy), and of BM25.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from clara_jax.config import RunConfig
from clara_jax.data import open_records
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError
from clara_jax.evaluate import Question, examine, questions_of
from clara_jax.evaluate.metrics import recall_of
from clara_jax.evaluate.predictions import Prediction, PredictionFile
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.generate.batched import AnyArray
from clara_jax.loading import load
from clara_jax.pipeline.before import ReportSettings
from clara_jax.search import Store
from clara_jax.search.exact import ExactSearcher
from clara_jax.shapes import Float
from clara_jax.stages import STAGES
from clara_jax.text.bm25 import Bm25
from clara_jax.train.document_vectors import store_vectors

KS = (1, 5)


@dataclasses.dataclass(frozen=True)
class Models:
    """The model after the last stage, and the readers of the other conditions."""

    clara: Clara
    readers: Mapping[str, examine.Reader]

    @classmethod
    def of(cls, runs: Sequence[RunConfig], settings: ReportSettings) -> "Models":
        """Load the last run that retrieves, and the baselines beside it.

        Raises:
          ClaraError: no run trains a reasoner, or one is not finished.
        """
        run = last_of(runs)
        config = AnswerConfig(
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            prompt_max_length=8192,
            question_max_length=run.data.question_max_length,
            too_long="cut",
        )
        clara = load(run.workdir, config, dtype=run.dtype)
        readers = {"frozen_text": examine.Reader(clara, None, "gold")}
        for other in runs:
            for name, reads in STAGES[other.stage].baselines.items():
                # On the weights that are there; only the adapter is another.
                tuned = load(other.workdir, config, dtype=run.dtype)
                adapter = tuned.network.adapters["generator"]
                own = clara.with_adapters({"generator": adapter})
                readers[name] = examine.Reader(own, "generator", reads)
        return cls(clara, readers)

    @property
    def before(self) -> Clara:
        """Return the model with the reasoner that stage 3 began with."""
        start = self.clara.network.adapters["compressor"]
        return self.clara.with_adapters({"reasoner": start})

    @property
    def conditions(self) -> list[str]:
        """Return all conditions under which questions are answered."""
        return ["model", *examine.DIAGNOSTICS, "bm25", *self.readers]


def last_of(runs: Sequence[RunConfig]) -> RunConfig:
    """Return the run whose model is measured, or refuse that there is none."""
    found = [run for run in runs if STAGES[run.stage].retrieves(run)]
    if not found:
        raise ClaraError(
            "config field 'report': there is no stage end_to_end, whose model could be "
            "measured; add one or take the group report away"
        )
    return found[-1]


def held_out(folder: Path, count: int) -> tuple[list[Question], list[str]]:
    """Return at most `count` held-out questions of a mix, and the source of each.

    They come from all sources in turn. Raises `ClaraError` if there are none.
    """
    files = sorted((folder / "held_out").glob("*.jsonl"))
    sources = [
        [(question, file.stem) for question in questions_of(open_records(file), count)]
        for file in files
        if file.stat().st_size
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*sources))
    found = list(itertools.islice(filter(None, turns), count))
    if not found:
        raise ClaraError(
            f"{folder / 'held_out'}: holds no questions; mix the data anew"
        )
    return [question for question, _ in found], [name for _, name in found]


class Known:
    """Vectors of a corpus, made beforehand, and of other documents, each made once.

    Attributes:
      corpus: the first passages, whose vectors the `store` has.
      whole: how many passages there are, those without vectors included.
      places: passage to its place in the corpus.
    """

    def __init__(self, clara: Clara, corpus: Sequence[str], store: Store):
        self.corpus, self.store = corpus[: len(store)], store
        self.whole = len(corpus)
        self.places = {text: i for i, text in enumerate(self.corpus)}
        self._clara = clara
        self._others: dict[str, Any] = {}

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n M D"]:
        """Return the vectors of documents, in their order."""
        others, places = self._others, self.places
        missing = [
            t for t in dict.fromkeys(texts) if t not in places and t not in others
        ]
        if missing:
            others.update(zip(missing, self._clara.compress(missing), strict=True))
        known = {t: places[t] for t in texts if t in places}
        vectors = self.store.vectors(list(known.values()))
        found = dict(zip(known, vectors, strict=True))
        return np.stack([others[t] if t in others else found[t] for t in texts])


def compress_corpus(
    clara: Clara,
    corpus: Sequence[str],
    folder: Path,
    seconds: float | None,
    stop: Callable[[], object],
) -> Store:
    """Compress distinct passages, or as many of the first as there is time for.

    ``folder/vectors`` keeps them; `seconds` and `stop` are as of `answer_all`.
    """
    end = None if seconds is None else time.monotonic() + seconds
    return store_vectors(
        folder / "vectors",
        clara,
        list(corpus),
        check=stop,
        late=None if end is None else lambda _: time.monotonic() >= end,
    )


def answer_all(
    models: Models,
    questions: Sequence[Question],
    sources: Sequence[str],
    known: Known,
    folder: Path,
    seconds: float | None,
    stop: Callable[[], object],
) -> list[Prediction]:
    """Answer the first questions under every condition, all where time suffices.

    Args:
      models: what answers.
      questions: with candidates.
      sources: of each question; documents are exchanged within a source only.
      known: compresses documents.
      folder: keeps ``predictions.jsonl`` for a command that goes on; one of other
        questions or models is replaced.
      seconds: after which no more are begun, once some are answered; None for no end.
      stop: called between batches; raises to end.
    """
    begin = time.monotonic()
    clara = models.clara
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(clara.network.adapters):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    settings = {
        "content": text_digest(repr(list(questions))).hex(),
        "conditions": models.conditions,
        "max_new_tokens": clara.config.max_new_tokens,
        "adapters": digest.hexdigest(),
    }
    path = folder / "predictions.jsonl"
    try:
        file = PredictionFile(path, settings)
    except ClaraError:
        path.unlink()
        file = PredictionFile(path, settings)
    exam = examine.Exam(
        setting="normal",
        top_k=clara.selection.top_k,
        conditions=models.conditions,
        readers=models.readers,
        rankers={"before": models.before},
        ranked=max(KS),
        compress=known,
        groups=sources,
    )
    count, start = len(questions), len(file.done)
    with tqdm(desc="evaluate", total=count, initial=start, unit="q") as bar:
        for predictions in examine.examine(clara, questions, exam, start):
            file.add(predictions)
            bar.update(len(predictions))
            stop()
            if seconds is not None and time.monotonic() - begin >= seconds:
                break
    return file.done


def corpus_recall(
    models: Models, questions: Sequence[Question], known: Known, seed: int = 0
) -> dict[str, Any] | None:
    """Search the known corpus for each question, with both reasoners and with BM25.

    Returns:
      ``rankings`` to ``recall@k`` with its interval, and the numbers of ``passages``
      searched, ``of`` so many, and of ``questions``, whose gold documents are known and
      all among them; None where there are none.
    """
    counted = [
        q
        for q in questions
        if not (q.gold_unknown or q.missing)
        and known.places.keys() >= {*q.gold_documents}
    ]
    if not counted:
        return None
    asked = [q.question for q in counted]
    right = [[known.places[text] for text in q.gold_documents] for q in counted]
    k, search = min(max(KS), len(known.corpus)), ExactSearcher(known.store)

    def flat(queries: Float[AnyArray, "B M D"]) -> Float[np.ndarray, "B W"]:
        return np.asarray(queries, np.float32).reshape(len(queries), -1)

    found = {
        "model": search(flat(models.clara.reason(asked)), k)[1],
        "before": search(flat(models.before.reason(asked)), k)[1],
        "bm25": Bm25(known.corpus).best(asked, k)[1],
    }
    rankings = {n: recall_of(right, r.tolist(), KS, seed) for n, r in found.items()}
    return {
        "rankings": rankings,
        "passages": len(known.corpus),
        "of": known.whole,
        "questions": len(asked),
    }


def corpus_of(folder: Path, count: int) -> list[str]:
    """Read distinct passages of a mix, held-out ones first; 0 as `count` takes all."""
    found: dict[str, None] = {}
    with (folder / "corpus.jsonl").open(encoding="utf-8") as file:
        while (not count or len(found) < count) and (line := file.readline()):
            found[json.loads(line)["text"]] = None
    return list(found)
