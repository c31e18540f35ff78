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
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from clara_jax.data.collection import Corpus
from clara_jax.data.records import Record, clara_fields
from clara_jax.data.resuming import (
    Progress,
    append_lines,
    check_begun,
    checksums,
    silent,
)
from clara_jax.data.sources import Records
from clara_jax.errors import ClaraError
from clara_jax.files import (
    lock_file,
    read_json,
    writable_folder,
    write_error,
    write_json,
)
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

        def part(number: int) -> str:
            return f"{number:,} ({100 * number / self.known:.1f}%)"

        return (
            f"{text}; of {self.known:,} with known right documents, all of them were "
            f"found for {part(self.complete)}, some for {part(self.some)}"
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
    work = out.with_name(f".{out.name}.work")
    note = work / "progress.json"
    identity = {
        "count": count,
        "oracle": oracle,
        "records": checksums(records.paths, progress)[0],
        "corpus": corpus.digest,
    }
    state: dict[str, Any] = read_json(note) if note.is_file() else {}
    if state:
        check_begun(work, state["identity"], identity)
    if out.exists():
        if not state.get("finished"):
            raise ClaraError(f"{out}: exists already; delete it, or name another file")
        shutil.rmtree(work, ignore_errors=True)  # killed just before this
        return Found(**state["found"])
    writable_folder(out.parent)
    asked = _questions(records, progress)
    questions = [question for _, _, question in asked]
    if not state:
        begun = dataclasses.asdict(Found(len(asked), count))
        state = {"identity": identity, "done": 0, "size": 0, "found": begun}
    found = Found(**state["found"])

    def steps() -> Iterator[list[dict[str, Any]]]:
        for begin in range(state["done"], len(asked), CHUNK):
            part = slice(begin, begin + CHUNK)
            pairs = zip(asked[part], search(part), strict=True)
            yield [_fields(records[i], j, t, oracle, found) for (i, j, _), t in pairs]

    def save(lines: int = 0, size: int = 0) -> None:
        done = state["done"] + lines
        state.update(done=done, size=size, found=dataclasses.asdict(found))
        write_json(note, {**state, "finished": done == len(asked)})

    try:
        work.mkdir(exist_ok=True)
        busy = f"{work}: another process is at work here; wait for its end"
        with lock_file(work / "lock", busy) or contextlib.nullcontext():
            save(size=state["size"])
            search = _search(corpus, questions, count, work / "rank", progress)
            with progress(
                desc="write", total=len(asked), initial=state["done"], unit="q"
            ) as bar:
                append_lines(work / "out.jsonl", state["size"], steps(), save, bar)
            os.replace(work / "out.jsonl", out)
    except OSError as error:
        raise write_error(out, error) from error
    shutil.rmtree(work, ignore_errors=True)
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
    texts = Texts(corpus.documents, corpus.texts)
    best = rank(questions, texts, count, folder, progress, "BM25")

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


class Texts(NamedTuple):
    """A corpus: how many documents it has, and what reads those from, to."""

    count: int
    read: Callable[[int, int], list[str]]

    @property
    def blocks(self) -> int:
        """How many blocks it has."""
        return -(-self.count // BLOCK)

    def block(self, number: int) -> list[str]:
        """Return the documents of a block."""
        return self.read(number * BLOCK, min((number + 1) * BLOCK, self.count))


def rank(
    questions: Sequence[str],
    texts: Texts,
    k: int,
    folder: Path,
    progress: Progress,
    name: str,
) -> Int64[np.ndarray, "Q k"]:
    """Return the `k` best documents of each question, as ``Bm25.best`` on all would.

    Args:
      questions: texts.
      texts: the documents.
      k: documents a question.
      folder: where the work lies; a ranking that was begun there with the same
        arguments goes on.
      progress: makes the bars.
      name: of the bars.

    Returns:
      Places of documents, mapped from disk; see ``Bm25.best``.

    Raises:
      ClaraError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        statistics = None
        if texts.blocks > 1:
            statistics = _count(questions, texts, folder / "words.npy", progress, name)
        done = max((int(path.stem) for path in folder.glob("*.best")), default=0)
        with progress(
            desc=name,
            total=texts.blocks * len(questions),
            initial=done * len(questions),
            unit="q",
        ) as bar:
            for block in range(done, texts.blocks):
                ranker = Bm25(texts.block(block), statistics)
                before = _load(folder / f"{block}.best", k) if block else None
                with _whole(folder / f"{block + 1}.best") as file:
                    for begin in range(0, len(questions), CHUNK):
                        part = slice(begin, begin + CHUNK)
                        best = _best(ranker, questions[part], k, block * BLOCK)
                        if before is not None:
                            best = _merged(before[part], best)
                        file.write(best.tobytes())
                        bar.update(len(best))
                del before
                (folder / f"{block}.best").unlink(missing_ok=True)
        return _load(folder / f"{texts.blocks}.best", k)["place"].view(np.ndarray)
    except OSError as error:
        raise write_error(folder, error) from error


def _count(
    questions: Sequence[str],
    texts: Texts,
    path: Path,
    progress: Progress,
    name: str,
) -> Statistics:
    """Count the questions' words in all documents; a file holds what is counted."""
    words = dict.fromkeys(itertools.chain.from_iterable(tokenize(questions)))
    statistics = Statistics({word: i for i, word in enumerate(words)})
    done = 0
    if path.is_file():
        stored = np.load(path)
        done, statistics.documents, statistics.length = stored[:3].tolist()
        statistics.holding = stored[3:]
    with progress(
        desc=f"{name}: words", total=texts.blocks, initial=done, unit="block"
    ) as bar:
        for block in range(done, texts.blocks):
            statistics.add(texts.block(block))
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


def _load(path: Path, k: int) -> np.ndarray:
    return np.memmap(path, _BEST, "r").reshape(-1, k)


def _best(ranker: Bm25, questions: Sequence[str], k: int, begin: int) -> np.ndarray:
    """The best of a block that starts at document `begin`."""
    scores, places = ranker.best(questions, k)
    best = np.empty(scores.shape, _BEST)
    best["score"], best["place"] = scores, np.where(places < 0, -1, places + begin)
    return best


def _merged(before: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The best of both; of equals the first stays first: that of the lower place."""
    both = np.concatenate([before, best], axis=1)
    order = np.argsort(-both["score"], axis=1, kind="stable")
    return np.take_along_axis(both, order[:, : best.shape[1]], 1)
