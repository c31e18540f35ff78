"""Candidates for questions out of a whole corpus: the paper's normal setting.

Every question gets the documents that a search finds for it, whether or not the right
ones are among them. By BM25 they are ranked block by block, and what is found so far
lies on disk: memory holds one block of documents and the questions, and a killed
ranking goes on with the block that it was at.
"""

import dataclasses
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clara_jax.data.document_corpus import Corpus
from clara_jax.data.records import Record, clara_fields, each
from clara_jax.data.sources import Records
from clara_jax.data.work import Progress, Work, open_work, silent
from clara_jax.documents import text_digest
from clara_jax.errors import ClaraError
from clara_jax.files import writing
from clara_jax.text.bm25 import Bm25, Statistics, tokenize

BLOCK = 200_000
"""Documents that questions are compared with at a time."""

CHUNK = 256
"""Questions of a step."""

_BEST = np.dtype([("score", np.float32), ("place", np.int64)])


@dataclasses.dataclass(frozen=True)
class Searched:
    """A corpus of so many documents behind a search; `digest` differs where they do.

    `search` takes questions and a number; returns the texts of so many documents for
    each, best first.
    """

    search: Callable[[Sequence[str], int], list[list[str]]]
    documents: int
    digest: str


@dataclasses.dataclass
class Found:
    """What was found: `count` documents for each of the questions.

    Of `known` the right documents are known: for `complete` of them all were found, for
    `some` at least one. Those of `lacking` have right documents whose text their
    records lack, which are in no corpus for certain and count as not found.
    """

    questions: int
    count: int
    known: int = 0
    complete: int = 0
    some: int = 0
    lacking: int = 0

    def __str__(self) -> str:
        text = f"{self.count} candidates for each of {self.questions:,} questions"
        if not self.known:
            return f"{text}; which documents are right is not known"
        complete, some = (
            f"{number:,} ({100 * number / self.known:.1f}%)"
            for number in (self.complete, self.some)
        )
        text += (
            f"; of {self.known:,} with known right documents, all of them were "
            f"found for {complete}, some for {some}"
        )
        if self.lacking:
            text += (
                f"; the records of {self.lacking:,} lack right documents, which count "
                "as not found"
            )
        return text


def find_candidates(
    records: Records,
    corpus: Corpus | Searched,
    count: int,
    out: str | Path,
    *,
    oracle: bool = False,
    progress: Progress = silent,
) -> Found:
    """Write every question with its `count` best documents, best first.

    Started again after an interruption, it goes on where it was.

    Args:
      records: the questions; one of several in a record becomes a record of its own.
      corpus: documents, ranked by BM25, or a search. Where BM25 finds fewer than
        `count` that share a word with a question, the first of the corpus fill the row.
      count: documents a question.
      out: JSONL file that ``open_records`` reads; appears whole. ``pos_index`` are the
        record's right documents (in its ``pos_index``; its only one), known by words,
        and ``missing`` is how many of them are not there.
      oracle: put right documents that were not found in place of the last others.
      progress: makes bars, as ``tqdm`` does.

    Raises:
      ClaraError: no questions, more candidates than documents, the file exists, the
        work was begun with other settings or inputs, or the disk is full.
    """
    out = Path(out)
    if not out.name or out.is_dir():
        raise ClaraError(f"'{out}' is not a file; name one with --out")
    if count > corpus.documents:
        raise ClaraError(
            f"count {count} is above the {corpus.documents} documents of the corpus; "
            "lower --count"
        )
    folder = out.with_name(f".{out.name}.work")
    taken = f"{out}: exists already; delete it, or name another file"
    if out.exists() and not folder.exists():
        raise ClaraError(taken)
    content = hashlib.blake2b(digest_size=16)
    asked: list[tuple[int, int, str]] = []  # a record, the place in it, the question
    bar = {"desc": "read questions", "unit": "rec", "total": len(records)}
    for i, record in enumerate(progress(each(records), **bar)):
        asked += [(i, j, question) for j, question in enumerate(record.questions)]
        known = dataclasses.replace(record, source="")
        content.update(repr(known).encode("utf-8"))
    if not asked:
        names = ", ".join(records.paths)
        raise ClaraError(f"{names}: holds no questions; give records of type qa")
    settings = {
        "count": count,
        "oracle": oracle,
        "records": content.hexdigest(),
        "corpus": corpus.digest,
    }
    with writing(out), open_work(folder, progress=progress) as work:
        work.begin(settings)
        begun = {"questions": len(asked), "count": count}
        found = Found(**(work.note("found") or begun))
        if out.exists() and work.note("write") != len(asked):
            raise ClaraError(taken)
        if not out.exists():
            questions = [question for _, _, question in asked]
            if isinstance(corpus, Corpus):
                ranking = Ranking(work, "rank", corpus.documents, corpus.texts)
                best = ranking.rank(questions, count)

            def texts_of(part: slice) -> Iterator[list[str]]:
                if isinstance(corpus, Searched):
                    yield from corpus.search(questions[part], count)
                    return
                for row in best[part].tolist():
                    places = [number for number in row if number >= 0]
                    places += [i for i in range(count) if i not in places]
                    yield [corpus.texts(i, i + 1)[0] for i in places[:count]]

            def lines(begin: int, end: int) -> Iterator[dict[str, Any]]:
                part = slice(begin, end)
                for (i, j, _), texts in zip(asked[part], texts_of(part), strict=True):
                    yield _fields(records[i], j, texts, oracle, found)
                work.set_note("found", dataclasses.asdict(found))

            path = folder / "out.jsonl"
            work.write_lines(path, "write", len(asked), CHUNK, lines)
            os.replace(path, out)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _fields(
    record: Record, place: int, texts: list[str], oracle: bool, found: Found
) -> dict[str, Any]:
    """Return the line of a question, and count it in `found`."""
    only = len(record.documents) == 1 and not record.missing
    right = record.positives or ((0,) if only else ())
    wanted = {_words(record.documents[i]): record.documents[i] for i in right}
    keys = [_words(text) for text in texts]
    missing = [key for key in wanted if key not in keys]
    if wanted or record.missing:
        found.known += 1
        found.lacking += record.missing > 0
        found.complete += not missing and not record.missing
        found.some += len(missing) < len(wanted)
    if oracle and missing:
        others = [i for i, key in enumerate(keys) if key not in wanted]
        for i, key in zip(others[-len(missing) :], missing, strict=False):
            texts[i], keys[i] = wanted[key], key
    places = [i for i, key in enumerate(keys) if key in wanted]
    lost = record.missing + len(wanted.keys() - set(keys))
    name = record.question_id(place)
    return clara_fields(texts, *record.pair(place), places, missing=lost, id=name)


def _words(text: str) -> bytes:
    """Return a digest of a text's words, whatever their case and punctuation."""
    return text_digest(" ".join(re.findall(r"\w+", text.lower())) or text)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rank the documents of a corpus by BM25, as ``Bm25.best`` on all of them would.

    `read` returns the texts of documents from, to, or to the last. The ranking lies in
    the work's folder and is noted there, under its name.
    """

    work: Work
    name: str
    documents: int
    read: Callable[[int, int], list[str]]

    def rank(self, questions: Sequence[str], k: int) -> Int64[np.ndarray, "Q k"]:
        """Return the places of the `k` best documents of each question.

        They are mapped from disk; see ``Bm25.best``.
        """
        folder, blocks = self.work.folder / self.name, -(-self.documents // BLOCK)
        statistics = self._count(questions, blocks) if blocks > 1 else None

        def best_of(blocks: int) -> np.ndarray:
            """Return the best of the first blocks."""
            return np.memmap(folder / f"{blocks}.best", _BEST, "r").reshape(-1, k)

        def step(block: int, end: int) -> None:
            ranker = Bm25(self._texts(block), statistics)
            before = best_of(block) if block else np.empty((len(questions), 0), _BEST)
            bar = self.work.progress(desc=self.name, total=len(questions), unit="q")
            with (folder / f"{end}.best").open("wb") as file, bar:
                for begin in range(0, len(questions), CHUNK):
                    part = slice(begin, begin + CHUNK)
                    scores, places = ranker.best(questions[part], k)
                    best = np.empty(scores.shape, _BEST)
                    best["score"] = scores
                    best["place"] = np.where(places < 0, -1, places + block * BLOCK)
                    # Of equals the first stays first: that of the lower place.
                    both = np.concatenate([before[part], best], axis=1)
                    order = np.argsort(-both["score"], axis=1, kind="stable")
                    file.write(np.take_along_axis(both, order[:, :k], 1).tobytes())
                    bar.update(len(best))
                file.flush()
                os.fsync(file.fileno())
            # That of the block before is needed until this step is noted.
            (folder / f"{block - 1}.best").unlink(missing_ok=True)

        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.work.in_steps(self.name, blocks, 1, step)
        return best_of(blocks)["place"].view(np.ndarray)

    def _texts(self, block: int) -> list[str]:
        return self.read(block * BLOCK, (block + 1) * BLOCK)

    def _count(self, questions: Sequence[str], blocks: int) -> Statistics:
        """Count the questions' words in all documents."""
        words = dict.fromkeys(itertools.chain.from_iterable(tokenize(questions)))
        found = Statistics({word: i for i, word in enumerate(words)})
        note = f"{self.name}: counted"
        if counted := self.work.note(note):
            found.documents, found.length, holding = counted
            found.holding = np.asarray(holding, np.int64)

        def step(block: int, _: int) -> None:
            found.add(self._texts(block))
            counted = [found.documents, found.length, found.holding.tolist()]
            self.work.set_note(note, counted)

        self.work.in_steps(f"{self.name}: words", blocks, 1, step, "block")
        return found
