"""From rows of tokens to the shards of a store, with progress and an orderly end."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from clara_jax.compress.reading import Reader, ahead
from clara_jax.errors import ClaraError
from clara_jax.generate import Clara, encode_rows
from clara_jax.generate.batched import require_role
from clara_jax.search import Job, Store
from clara_jax.shapes import Float

_NUMBERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""Environment variables with the number of a process, from 0, and how many there are;
the first pair that is set counts."""


class Part(NamedTuple):
    """One of so many parts; counted from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.index + 1} of {self.count}"


def parse_part(text: str) -> Part:
    """Read a part as it is written: ``I/N``, where I counts from 1.

    Raises:
      ClaraError: it is no such part.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 0 < int(index) <= int(count)):
        raise ClaraError(
            f"--part is '{text}', but must be I/N, such as 1/4 for the first of four"
        )
    return Part(int(index) - 1, int(count))


def own_part(environment: Mapping[str, str] = os.environ) -> Part:
    """Find this process's part: what a cluster says, or all.

    Args:
      environment: variables to look at; see also ``jax.process_count``, which knows of
        the hosts of a TPU slice.

    Raises:
      ClaraError: the variables make no sense.
    """
    for index, count in _NUMBERS:
        if index in environment and count in environment:
            numbers = environment[index], environment[count]
            if not all(map(str.isdecimal, numbers)) or int(numbers[0]) >= int(
                numbers[1]
            ):
                raise ClaraError(
                    f"environment: {index} is '{numbers[0]}' of {count} "
                    f"'{numbers[1]}'; give the part with --part, such as --part 1/1"
                )
            return Part(int(numbers[0]), int(numbers[1]))
    return Part(jax.process_index(), jax.process_count())


NEAR = 2
"""Folders up from the store to one that a model is looked for below."""


class Compressor:
    """A model that makes document vectors on all devices of a mesh, and nothing else.

    Args:
      clara: the model, laid out over `mesh`.
      mesh: the rows of a batch are split over it.
      batch_size: rows read together, on all devices.
      merge: put the adapter into the weights: one product per matrix in place of
        three. Quantized weights are left as they are.

    Raises:
      ClaraError: the model has no compressor.
    """

    def __init__(
        self, clara: Clara, mesh: Mesh, batch_size: int, *, merge: bool = True
    ):
        network = clara.network
        require_role(network, "compressor")
        self._role: str | None = "compressor"
        if merge and not _is_quantized(network.backbone["params"]):
            with jax.set_mesh(mesh):
                network = network.merge("compressor")
            self._role = None
        own = {name: network.adapters[name] for name in ("compressor", "memory")}
        self._network = dataclasses.replace(network, adapters=own)
        self._mesh, self._batch_size = mesh, batch_size
        self._largest = clara.memory.doc_max_length + 3 + clara.memory.num_memory
        self._pad = clara.tokenizer.pad_id

    def __call__(
        self, rows: Sequence[Sequence[int]], tell: Callable[[int], object] | None = None
    ) -> Float[np.ndarray, "n M D"]:
        """Make the vectors of rows; for `tell` see ``generate.encode_rows``."""
        with jax.set_mesh(self._mesh):
            return encode_rows(
                self._network,
                rows,
                role=self._role,
                pad_id=self._pad,
                batch_size=self._batch_size,
                largest=self._largest,
                tell=tell,
            )


def _is_quantized(params: dict) -> bool:
    return any(
        getattr(path[-1], "key", "") == "codes"
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    )


@dataclasses.dataclass
class Counts:
    """What one command has done.

    Attributes:
      documents, pieces, tokens: read by the model.
      cut: documents whose ends were left out.
      unknown: pieces with words that the tokenizer has no token for.
      seconds: from the first shard's begin to the last one's end.
    """

    documents: int = 0
    pieces: int = 0
    tokens: int = 0
    cut: int = 0
    unknown: int = 0
    seconds: float = 0.0


class Task:
    """The shards of one part, written one after the other.

    Args:
      job: begun.
      reader: of the corpus.
      compressor: of the model.
      check: called after every batch; what it raises ends the work, and the shard at
        hand is dropped.

    Attributes:
      counts: of what was done so far.
      left: shards of the part that are not written yet.
    """

    def __init__(
        self,
        job: Job,
        reader: Reader,
        compressor: Compressor,
        check: Callable[[], object] = lambda: None,
    ):
        self._job, self._reader, self._compressor = job, reader, compressor
        self._check = check
        self.counts = Counts()
        self.left: list[int] = []

    def run(self, part: int = 0, parts: int = 1) -> Counts:
        """Write what is missing of a part, with a bar that knows of what is there.

        Args:
          part, parts: see ``search.Job.missing``.

        Returns:
          What was done.
        """
        self.left = self._job.missing(part, parts)
        own = range(part, len(self._reader), parts)
        total = sum(map(self._reader.entries, own))
        todo = sum(map(self._reader.entries, self.left))
        begin = time.perf_counter()
        with tqdm(
            desc="compress",
            total=total,
            initial=total - todo,
            unit=self._reader.unit,
        ) as bar:
            for texts in ahead(self._reader.read, tuple(self.left)):
                entries = self._reader.entries(texts.shard)
                meter = _Meter(bar, entries, len(texts.rows))

                def tell(rows: int, meter: _Meter = meter) -> None:
                    self._check()
                    meter.add(rows)

                vectors = self._compressor(texts.rows, tell)
                self._job.write(texts.shard, vectors, texts.pieces)
                self.left.remove(texts.shard)
                counts = self.counts
                counts.tokens += sum(map(len, texts.rows))
                counts.pieces += len(texts.pieces)
                counts.documents += texts.documents
                counts.cut += texts.cut
                counts.unknown += texts.unknown
                counts.seconds = time.perf_counter() - begin
                rate = counts.tokens / counts.seconds
                bar.set_postfix_str(f"{rate:,.0f} tokens/s")
        return self.counts


class _Meter:
    """Moves a bar over the entries of a shard as its rows are done."""

    def __init__(self, bar: tqdm, entries: int, rows: int):
        self._bar, self._entries, self._rows = bar, entries, rows
        self._done = self._shown = 0

    def add(self, rows: int) -> None:
        self._done += rows
        reached = self._entries * self._done // self._rows
        self._bar.update(reached - self._shown)
        self._shown = reached


def model_place(model: str | os.PathLike, store: str | os.PathLike) -> str:
    """How a store names the model that made it.

    Args:
      model: a folder or file, or a hub name.
      store: the store's folder.

    Returns:
      A path relative to the store where both lie near each other, so that they may be
      moved together; else an absolute one; a hub name as it is.

    Example::

      model_place("runs/a/end_to_end", "runs/a/store")  # "../end_to_end"
    """
    if not str(model) or not Path(model).exists():
        return str(model)
    place, origin = os.path.realpath(model), os.path.realpath(store)
    relative = os.path.relpath(place, origin)
    parts = Path(relative).parts
    shared = os.path.commonpath((place, origin))
    near = parts.count(os.pardir) <= NEAR and Path(shared) != Path(shared).parent
    return Path(relative).as_posix() if near else place


def find_model(store: Store) -> tuple[str, str]:
    """Where the model that made a store is, and its base if that is kept elsewhere.

    Returns:
      What ``clara_jax.load`` takes as ``path`` and ``base``; see `model_place`.
    """

    def place(name: str) -> str:
        beside = store.path / name
        return str(beside) if name and beside.exists() else name

    return place(store.manifest.model), place(store.manifest.base)
