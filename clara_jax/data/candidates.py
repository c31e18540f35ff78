"""Candidates for questions out of a whole corpus: the paper's normal setting.

Every question gets the documents that a search finds for it, best first, whether or not
the right ones are among them. By BM25 they are ranked block by block, and what is found
so far lies on disk: memory holds one block of documents and the questions, and a killed
ranking goes on with the block that it was at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64

from clara_jax.data.corpus import Corpus
from clara_jax.data.records import Record, clara_fields
from clara_jax.data.sources import Records
from clara_jax.data.work import Progress, checksums, open_work, silent
from clara_jax.errors import ClaraError
from clara_jax.files import write_error
from clara_jax.text.bm25 import Bm25, Statistics, tokenize

BLOCK = 200_000
"""Documents that questions are compared with at a time."""

CHUNK = 256
"""Questions of a step."""

_BEST = np.dtype([("score", np.float32), ("place", np.int64)])


@dataclasses.dataclass(frozen=True)
class Searched:
    """A corpus behind a search.

    Attributes:
      search: questions and a number to the texts of so many documents for each, best
        first.
      documents: how many there are.
      digest: differs where the documents or the search do.
    """

    search: Callable[[Sequence[str], int], list[list[str]]]
    documents: int
    digest: str


@dataclasses.dataclass
class Found:
    """What was found.

    Attributes:
      questions: all of them.
      count: documents of each.
      known: questions whose right documents are known.
      complete: of these, those for which all of them were found without help.
      some: those for which at least one was.
    """

    questions: int
    count: int
    known: int = 0
    complete: int = 0
    some: int = 0

    def __str__(self) -> str:
        text = f"{self.count} candidates for each of {self.questions:,} questions"
        if not self.known:
            return f"{text}; which documents are right is not known"
        complete, some = (
            f"{number:,} ({100 * number / self.known:.1f}%)"
            for number in (self.complete, self.some)
        )
        return (
            f"{text}; of {self.known:,} with known right documents, all of them were "
            f"found for {complete}, some for {some}"
        )


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
        places of the record's right documents (those in its ``pos_index``; its only
        one), which are known by their words.
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
    settings = {
        "count": count,
        "oracle": oracle,
        "records": checksums(records.paths, progress)[0],
        "corpus": corpus.digest,
    }
    asked = _questions(records, progress)
    try:
        with open_work(folder) as work:
            work.begin(folder, settings)
            begun = {"questions": len(asked), "count": count}
            found = Found(**(work.note("found") or begun))
            if out.exists() and work.note("write") != len(asked):
                raise ClaraError(taken)
            if not out.exists():
                questions = [question for _, _, question in asked]
                search = _search(corpus, questions, count, folder / "rank", progress)

                def lines(begin: int, end: int) -> Iterator[dict[str, Any]]:
                    part = slice(begin, end)
                    for (i, j, _), texts in zip(asked[part], search(part), strict=True):
                        yield _fields(records[i], j, texts, oracle, found)
                    work.set_note("found", dataclasses.asdict(found))

                path = folder / "out.jsonl"
                work.write_lines(path, "write", len(asked), CHUNK, lines, progress)
                os.replace(path, out)
    except OSError as error:
        raise write_error(out, error) from error
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _questions(records: Records, progress: Progress) -> list[tuple[int, int, str]]:
    """Each question's record, place in it, and text."""
    found: list[tuple[int, int, str]] = []
    with progress(desc="read questions", total=len(records), unit="rec") as bar:
        for i, record in enumerate(records):
            found += [(i, j, question) for j, question in enumerate(record.questions)]
            bar.update(1)
    if not found:
        names = ", ".join(records.paths)
        raise ClaraError(f"{names}: holds no questions; give records of type qa")
    return found


def _search(
    corpus: Corpus | Searched,
    questions: Sequence[str],
    count: int,
    folder: Path,
    progress: Progress,
) -> Callable[[slice], list[list[str]]]:
    """Rank the documents; what is returned reads those of a range of questions."""
    if isinstance(corpus, Searched):
        return lambda part: corpus.search(questions[part], count)
    ranking = Ranking(corpus.documents, corpus.texts, folder, progress, "BM25")
    best = ranking.rank(questions, count)

    def read(part: slice) -> list[list[str]]:
        rows = []
        for row in best[part].tolist():
            taken = [number for number in row if number >= 0]
            taken += [number for number in range(count) if number not in taken]
            rows.append([corpus.texts(i, i + 1)[0] for i in taken[:count]])
        return rows

    return read


def _fields(
    record: Record, place: int, texts: list[str], oracle: bool, found: Found
) -> dict[str, Any]:
    """The line of a question, which is also counted."""
    right = record.positives or ((0,) if len(record.documents) == 1 else ())
    wanted = {_words(record.documents[i]): record.documents[i] for i in right}
    keys = [_words(text) for text in texts]
    missing = [key for key in wanted if key not in keys]
    if wanted:
        found.known += 1
        found.complete += not missing
        found.some += len(missing) < len(wanted)
    if oracle and missing:
        others = [i for i, key in enumerate(keys) if key not in wanted]
        for i, key in zip(others[-len(missing) :], missing, strict=False):
            texts[i], keys[i] = wanted[key], key
    places = [i for i, key in enumerate(keys) if key in wanted]
    return clara_fields(texts, *record.pair(place), places)


def _words(text: str) -> bytes:
    """What two texts have in common that differ in punctuation or capitals alone."""
    words = " ".join(re.findall(r"\w+", text.lower())) or text
    return hashlib.blake2b(words.encode(), digest_size=16).digest()


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The documents of a corpus ranked by BM25, as ``Bm25.best`` on all of them would.

    Attributes:
      documents: how many there are.
      read: returns the texts of documents from, to.
      folder: where the work lies; a ranking that was begun there with the same
        arguments goes on.
      progress: makes the bars.
      name: of the bars.
    """

    documents: int
    read: Callable[[int, int], list[str]]
    folder: Path
    progress: Progress
    name: str

    def rank(self, questions: Sequence[str], k: int) -> Int64[np.ndarray, "Q k"]:
        """Return the `k` best documents of each question.

        Returns:
          Places of documents, mapped from disk; see ``Bm25.best``.

        Raises:
          ClaraError: the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            blocks = -(-self.documents // BLOCK)
            statistics = self._count(questions, blocks) if blocks > 1 else None
            done = max(
                (int(path.stem) for path in self.folder.glob("*.top")), default=0
            )
            with self.progress(
                desc=self.name,
                total=blocks * len(questions),
                initial=done * len(questions),
                unit="q",
            ) as bar:
                for block in range(done, blocks):
                    ranker = Bm25(self._texts(block), statistics)
                    before = self._best(block, k) if block else None
                    with _whole(self.folder / f"{block + 1}.top") as file:
                        for begin in range(0, len(questions), CHUNK):
                            part = slice(begin, begin + CHUNK)
                            best = _best_of_block(ranker, questions[part], k, block)
                            if before is not None:
                                best = _merged(before[part], best)
                            file.write(best.tobytes())
                            bar.update(len(best))
                    del before
                    (self.folder / f"{block}.top").unlink(missing_ok=True)
            return self._best(blocks, k)["place"].view(np.ndarray)
        except OSError as error:
            raise write_error(self.folder, error) from error

    def _texts(self, block: int) -> list[str]:
        return self.read(block * BLOCK, min((block + 1) * BLOCK, self.documents))

    def _best(self, blocks: int, k: int) -> np.ndarray:
        """What is best among the first blocks."""
        return np.memmap(self.folder / f"{blocks}.top", _BEST, "r").reshape(-1, k)

    def _count(self, questions: Sequence[str], blocks: int) -> Statistics:
        """Count the questions' words in all documents."""
        words = dict.fromkeys(itertools.chain.from_iterable(tokenize(questions)))
        statistics = Statistics({word: i for i, word in enumerate(words)})
        path, done = self.folder / "counts.npy", 0
        if path.is_file():
            stored = np.load(path)
            done, statistics.documents, statistics.length = stored[:3].tolist()
            statistics.holding = stored[3:]
        desc = f"{self.name}: words"
        with self.progress(desc=desc, total=blocks, initial=done, unit="block") as bar:
            for block in range(done, blocks):
                statistics.add(self._texts(block))
                sums = [block + 1, statistics.documents, statistics.length]
                with _whole(path) as file:
                    np.save(file, np.append(sums, statistics.holding))
                bar.update(1)
        return statistics


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there only when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _best_of_block(
    ranker: Bm25, questions: Sequence[str], k: int, block: int
) -> np.ndarray:
    scores, places = ranker.best(questions, k)
    best = np.empty(scores.shape, _BEST)
    best["score"] = scores
    best["place"] = np.where(places < 0, -1, places + block * BLOCK)
    return best


def _merged(before: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The best of both; of equals the first stays first: that of the lower place."""
    both = np.concatenate([before, best], axis=1)
    order = np.argsort(-both["score"], axis=1, kind="stable")
    return np.take_along_axis(both, order[:, : best.shape[1]], 1)
