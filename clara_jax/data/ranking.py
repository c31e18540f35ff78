"""The best documents of a large corpus for many questions, by BM25, block by block.

What is found so far lies on disk, so that memory holds one block of documents and the
questions' words, and a killed ranking goes on with the block that it was at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from clara_jax.data.progress import Progress
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, reserve, write_error, write_json
from clara_jax.text.bm25 import Bm25, Statistics, tokenize

CHUNK = 256
"""Questions between two movements of the bar."""

_STATE = "state.json"


@runtime_checkable
class Blocks(Protocol):
    """A corpus in blocks, in the order of the documents' numbers."""

    def __len__(self) -> int:
        """How many blocks there are."""
        ...

    def __getitem__(self, index: int, /) -> tuple[list[str], Int64[np.ndarray, " n"]]:
        """Texts of a block, and their numbers, rising from block to block."""
        ...


def rank(
    questions: Sequence[str],
    blocks: Blocks,
    k: int,
    folder: Path,
    progress: Progress,
    name: str = "rank",
) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
    """Return the `k` best documents of each question, as ``Bm25.best`` on all would.

    Args:
      questions: texts.
      blocks: the documents.
      k: documents a question.
      folder: where the work lies; a ranking that was begun there with the same
        arguments goes on.
      progress: makes the bar.
      name: of the bar.

    Returns:
      Scores and documents' numbers, mapped from disk; see ``Bm25.best``.

    Raises:
      ClaraError: the disk is full.
    """
    try:
        return _Ranking(questions, blocks, k, folder).run(progress, name)
    except OSError as error:
        raise write_error(folder, error) from error


class _Ranking:
    def __init__(self, questions: Sequence[str], blocks: Blocks, k: int, folder: Path):
        self._blocks, self._k, self._folder = blocks, k, folder
        self._questions = tokenize(questions)
        sizes = {"questions": len(questions), "blocks": len(blocks), "k": k}
        self._state = {**sizes, "counted": 0, "ranked": 0}
        if (folder / _STATE).is_file():
            state = read_json(folder / _STATE)
            if any(state.get(key) != value for key, value in sizes.items()):
                raise ClaraError(
                    f"{folder}: holds another ranking; delete it to start anew"
                )
            self._state = state

    def run(
        self, progress: Progress, name: str
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        count, asked = len(self._blocks), len(self._questions)
        statistics = self._count(progress, name) if count > 1 else None
        with progress(
            desc=name,
            total=count * asked,
            initial=self._state["ranked"] * asked,
            unit="q",
        ) as bar:
            for block in range(self._state["ranked"], count):
                self._rank(block, statistics, bar)
                self._set("ranked", block + 1)
        scores, numbers = self._maps(count, "r")
        return scores.view(np.ndarray), numbers.view(np.ndarray)

    def _count(self, progress: Progress, name: str) -> Statistics:
        words: dict[str, int] = {}
        for question in self._questions:
            for word in question:
                words.setdefault(word, len(words))
        statistics = Statistics(words)
        done = self._state["counted"]
        if done:
            with np.load(self._path("statistics", done, "npz")) as stored:
                statistics.holding = stored["holding"]
                statistics.documents = int(stored["documents"])
                statistics.length = int(stored["length"])
        total = len(self._blocks)
        with progress(
            desc=f"{name}: words", total=total, initial=done, unit="block"
        ) as bar:
            for block in range(done, total):
                texts, _ = self._blocks[block]
                statistics.add(texts)
                np.savez(
                    self._path("statistics", block + 1, "npz"),
                    holding=statistics.holding,
                    documents=statistics.documents,
                    length=statistics.length,
                )
                self._set("counted", block + 1)
                self._path("statistics", block, "npz").unlink(missing_ok=True)
                bar.update(1)
        return statistics

    def _rank(self, block: int, statistics: Statistics | None, bar: object) -> None:
        """Merge a block's best into those of the blocks before it."""
        texts, numbers = self._blocks[block]
        ranker = Bm25(texts, statistics)
        scores, found = self._maps(block + 1, "w+")
        before = self._maps(block, "r") if block else None
        for begin in range(0, len(self._questions), CHUNK):
            rows = slice(begin, begin + CHUNK)
            asked = self._questions[rows]
            best, places = ranker.best_of_words(asked, self._k)
            if len(texts):
                places = np.where(places < 0, -1, numbers[places])
            if before is not None:
                # Of equals the first stays first: that of the lower number.
                best = np.concatenate([before[0][rows], best], axis=1)
                places = np.concatenate([before[1][rows], places], axis=1)
                order = np.argsort(-best, axis=1, kind="stable")[:, : self._k]
                best = np.take_along_axis(best, order, 1)
                places = np.take_along_axis(places, order, 1)
            scores[rows], found[rows] = best, places
            bar.update(len(asked))  # type: ignore[attr-defined]
        scores.flush()
        found.flush()

    def _maps(self, block: int, mode: str) -> tuple[np.memmap, np.memmap]:
        """Scores and numbers after so many blocks: two pairs of files in turn."""
        shape = (len(self._questions), self._k)
        kinds = {"scores": np.dtype(np.float32), "numbers": np.dtype(np.int64)}
        paths = {name: self._path(name, block % 2, "bin") for name in kinds}
        if mode == "w+":
            for name, kind in kinds.items():
                reserve(paths[name], shape[0] * shape[1] * kind.itemsize)
            mode = "r+"
        return tuple(
            np.memmap(paths[name], kind, mode, shape=shape)  # type: ignore[arg-type]
            for name, kind in kinds.items()
        )  # type: ignore[return-value]

    def _set(self, name: str, value: int) -> None:
        self._state[name] = value
        write_json(self._folder / _STATE, self._state)

    def _path(self, name: str, number: int, suffix: str) -> Path:
        return self._folder / f"{name}-{number}.{suffix}"
