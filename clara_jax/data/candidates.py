"""Candidates for questions out of a whole corpus: the paper's normal setting.

Every question gets the documents that a search finds for it, best first, whether or not
the right ones are among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.data.corpus import Corpus
from clara_jax.data.inputs import Inputs
from clara_jax.data.progress import Progress, silent
from clara_jax.data.ranking import rank
from clara_jax.data.records import RecordSource
from clara_jax.errors import ClaraError
from clara_jax.files import (
    lock_file,
    read_json,
    writable_folder,
    write_error,
    write_json,
)

BLOCK = 200_000
"""Entries of a corpus that are searched together."""

CHUNK = 256
"""Questions of a step."""

_STATE = "progress.json"
_PLACES = 20
"""Bits of a document's number that count the documents of one entry."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Records with questions, and the files that they come from."""

    records: RecordSource
    paths: Sequence[str | Path]


@dataclasses.dataclass(frozen=True)
class Searched:
    """A corpus behind a search.

    Attributes:
      search: questions and a number to the texts of so many documents for each, best
        first.
      documents: how many there are.
      identity: differs where the documents or the search do.
    """

    search: Callable[[Sequence[str], int], list[list[str]]]
    documents: int
    identity: str


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
      questions: all of them. count: documents of each.
      known: questions whose right documents are known.
      complete, some: of these, those for which all of them, or at least one, were found
        without help.
    """

    questions: int
    count: int
    known: int
    complete: int
    some: int

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
    asked: Asked,
    corpus: Corpus | Searched,
    count: int,
    out: str | Path,
    *,
    oracle: bool = False,
    progress: Progress = silent,
    block: int = BLOCK,
) -> Found:
    """Write every question with its `count` best documents, best first.

    Started again after an interruption, it goes on where it was.

    Args:
      asked: the questions; one of several in a record becomes a record of its own.
      corpus: documents, ranked by BM25, or a search. Where BM25 finds fewer than
        `count` that share a word with a question, the first of the corpus fill the row.
      count: documents a question.
      out: JSONL file that ``open_records`` reads; appears whole. ``pos_index`` are the
        places of the record's right documents (those in its ``pos_index``; its only
        one), which are known by their words.
      oracle: put right documents that were not found in place of the last others.
      progress: makes bars, as ``tqdm`` does.
      block: entries of the corpus that are searched together.

    Raises:
      ClaraError: no questions, more candidates than documents, the file exists, the
        work was begun with other settings or inputs, or the disk is full.
    """
    out = Path(out)
    if not out.name or out.is_dir():
        raise ClaraError(f"'{out}' is no file; name one with --out")
    size = corpus.documents
    if count > size:
        raise ClaraError(
            f"count {count} is above the {size} documents of the corpus; lower --count"
        )
    work = out.with_name(f".{out.name}.work")
    identity = {
        "count": count,
        "oracle": oracle,
        "block": block,
        "records": Inputs(asked.paths, [], progress).checksums,
        "corpus": corpus.digest if isinstance(corpus, Corpus) else corpus.identity,
    }
    state = read_json(work / _STATE) if (work / _STATE).is_file() else None
    if state is not None:
        names = [k for k, v in identity.items() if state["identity"].get(k) != v]
        if names:
            raise ClaraError(
                f"{work}: was begun with other settings or inputs ({', '.join(names)});"
                " delete it to start anew"
            )
    if out.exists():
        if state is None or not state.get("finished"):
            raise ClaraError(f"{out}: exists already; delete it, or name another file")
        shutil.rmtree(work, ignore_errors=True)  # killed just before this
        return Found(**state["found"])
    writable_folder(out.parent)
    numbers, questions = _questions(asked, progress)
    try:
        work.mkdir(exist_ok=True)
        busy = f"{work}: another process is at work here; wait for its end"
        with lock_file(work / "lock", busy) or contextlib.nullcontext():
            if isinstance(corpus, Corpus):
                find = _ranked(corpus, questions, count, work, progress, block)
            else:
                find = _searched(corpus, questions, count)
            run = _Run(asked.records, numbers, find, work, identity, state)
            found = run.write(count, oracle, progress)
            os.replace(run.path, out)
    except OSError as error:
        raise write_error(out, error) from error
    shutil.rmtree(work, ignore_errors=True)
    return found


Find = Callable[[int, int], list[list[str]]]
"""Texts of the documents of questions from, to."""


def _questions(
    asked: Asked, progress: Progress
) -> tuple[list[tuple[int, int]], list[str]]:
    """Each question's record and place in it, and its text."""
    numbers: list[tuple[int, int]] = []
    questions: list[str] = []
    total = len(asked.records)
    with progress(desc="read questions", total=total, unit="rec") as bar:
        for i in range(total):
            record = asked.records[i]
            for j in range(len(record.questions)):
                numbers.append((i, j))
                questions.append(record.questions[j])
            bar.update(1)
    if not questions:
        names = ", ".join(map(str, asked.paths))
        raise ClaraError(f"{names}: holds no questions; give records of type qa")
    return numbers, questions


class _Blocks:
    """A corpus in blocks of entries; a document's number holds its entry's."""

    def __init__(self, corpus: Corpus, size: int):
        self._corpus, self._size = corpus, size

    def __len__(self) -> int:
        return -(-len(self._corpus) // self._size)

    def __getitem__(self, index: int) -> tuple[list[str], np.ndarray]:
        begin = index * self._size
        texts, numbers = [], []
        for entry in range(begin, min(begin + self._size, len(self._corpus))):
            for place, document in enumerate(self._corpus[entry]):
                texts.append(document.text)
                numbers.append((entry << _PLACES) + place)
        return texts, np.asarray(numbers, np.int64)


def _ranked(
    corpus: Corpus,
    questions: Sequence[str],
    count: int,
    work: Path,
    progress: Progress,
    block: int,
) -> Find:
    blocks = _Blocks(corpus, block)
    _, best = rank(questions, blocks, count, work / "rank", progress, "BM25")
    # Enough to fill any row.
    first: list[int] = []
    for entry in range(len(corpus)):
        first += [(entry << _PLACES) + i for i in range(len(corpus[entry]))]
        if len(first) >= count:
            break

    def find(begin: int, end: int) -> list[list[str]]:
        rows = []
        for row in best[begin:end].tolist():
            taken = [number for number in row if number >= 0]
            taken += [number for number in first if number not in taken]
            rows.append(
                [
                    corpus[number >> _PLACES][number & ((1 << _PLACES) - 1)].text
                    for number in taken[:count]
                ]
            )
        return rows

    return find


def _searched(corpus: Searched, questions: Sequence[str], count: int) -> Find:
    return lambda begin, end: corpus.search(questions[begin:end], count)


class _Run:
    """Writes the file in steps, each of which is noted when it is done."""

    def __init__(
        self,
        records: RecordSource,
        numbers: Sequence[tuple[int, int]],
        find: Find,
        work: Path,
        identity: dict[str, Any],
        state: dict[str, Any] | None,
    ):
        self.path = work / "out.jsonl"
        self._records, self._numbers, self._find = records, numbers, find
        self._work = work
        self._state = state or {"identity": identity, "done": 0, "size": 0, "found": {}}
        self._note()

    def _note(self) -> None:
        write_json(self._work / _STATE, self._state)

    def write(self, count: int, oracle: bool, progress: Progress) -> Found:
        """Write what is not written yet."""
        state, total = self._state, len(self._numbers)
        counts = {"known": 0, "complete": 0, "some": 0}
        counts.update({k: state["found"][k] for k in counts if k in state["found"]})
        with (
            self.path.open("ab") as file,
            progress(desc="write", total=total, initial=state["done"], unit="q") as bar,
        ):
            file.truncate(state["size"])
            file.seek(state["size"])
            while state["done"] < total:
                begin, end = state["done"], min(state["done"] + CHUNK, total)
                for i, texts in enumerate(self._find(begin, end), begin):
                    fields = self._fields(i, texts, oracle, counts)
                    line = json.dumps(fields, ensure_ascii=False)
                    file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                found = {"questions": total, "count": count, **counts}
                state.update(done=end, size=file.tell(), found=found)
                self._note()
                bar.update(end - begin)
        state["finished"] = True
        self._note()
        return Found(**state["found"])

    def _fields(
        self, index: int, texts: list[str], oracle: bool, counts: dict[str, int]
    ) -> dict[str, Any]:
        number, place = self._numbers[index]
        record = self._records[number]
        question, target, gold = record.pair(place)
        right = record.positives or ((0,) if len(record.documents) == 1 else ())
        wanted = {_words(record.documents[i]): record.documents[i] for i in right}
        keys = [_words(text) for text in texts]
        missing = [key for key in wanted if key not in keys]
        if wanted:
            counts["known"] += 1
            counts["complete"] += not missing
            counts["some"] += len(missing) < len(wanted)
        if oracle and missing:
            others = [i for i, key in enumerate(keys) if key not in wanted]
            for i, key in zip(others[-len(missing) :], missing, strict=False):
                texts[i], keys[i] = wanted[key], key
        fields: dict[str, Any] = {"docs": texts, "question": question}
        if gold[:1] == (target,):
            fields["answers"] = list(gold)
        else:
            fields |= {"answers": [target], "gold_answer": list(gold)}
        places = [i for i, key in enumerate(keys) if key in wanted]
        return {**fields, "data_type": "qa", "pos_index": places}


def _words(text: str) -> bytes:
    """What two texts have in common that differ in punctuation or capitals alone."""
    words = " ".join(re.findall(r"\w+", text.lower())) or text
    return hashlib.blake2b(words.encode(), digest_size=16).digest()
