"""What a stage is: a new training method is a subclass in a file of its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from clara_jax.clara import Loss
from clara_jax.config import RunConfig, require
from clara_jax.data import Dialogue, Draw, Example, ExampleMaker, Reads, Record
from clara_jax.evaluate import Evaluator, Question
from clara_jax.generate import Clara
from clara_jax.search import Store
from clara_jax.search.exact import Searcher


@runtime_checkable
class HeldOut(Protocol):
    """What evaluators are made of: a run's held-out records, model and corpus."""

    @property
    def config(self) -> RunConfig:
        """The run."""
        ...

    @property
    def store(self) -> Store | None:
        """The corpus, if the run has one."""
        ...

    @property
    def questions(self) -> Sequence[Question]:
        """Questions of the held-out records."""
        ...

    @property
    def clara(self) -> Clara:
        """The model, with the frozen adapters."""
        ...

    def searcher(self) -> Searcher:
        """Return the search over `store`, opened once."""
        ...

    def loss(self, shuffled: bool = False) -> Evaluator:
        """Make the evaluator of the stage's loss, or of it with others' documents."""
        ...


class Stage:
    """One training stage; its methods are pure functions of their arguments.

    Attributes:
      name: as in configs.
      trains: adapters that the optimizer holds; all others are frozen. ``backbone``
        trains the whole model, which then has no adapters.
      fresh: adapters that start anew even if the earlier run has them.
      copies: adapter to the one it starts as a copy of, where the earlier run lacks it.
      baselines: rows of a report that the trained generator gives, to what it reads
        there; see ``evaluate.examine.Reader``.
    """

    name: ClassVar[str]
    trains: ClassVar[tuple[str, ...]]
    fresh: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[Mapping[str, str]] = {}
    baselines: ClassVar[Mapping[str, str]] = {}

    def reads(self, config: RunConfig) -> tuple[Reads, ...]:
        """Return the rows of a batch."""
        raise NotImplementedError

    def dialogue(
        self, make: ExampleMaker, record: Record, draw: Draw | None = None
    ) -> Dialogue:
        """Say what the generator is asked, what it shall answer, and from what.

        Args:
          make: puts texts into rows, by the config.
          record: one that fits the stage, or `ClaraError` names its file and line.
          draw: chooses among several questions; None takes the first.
        """
        raise NotImplementedError

    def loss(self, config: RunConfig) -> Loss:
        """Return what a step minimises."""
        raise NotImplementedError

    def check(self, config: RunConfig) -> None:
        """Refuse settings that the stage cannot use, in a `ClaraError`.

        By default a store if no vectors are read, and candidates out of a whole corpus
        if questions do not select what they are answered from.
        """
        require(
            self.caches_vectors(config) or not config.store,
            "store",
            f"is set, but stage {self.name} reads no document vectors; leave it empty",
        )
        require(
            self.retrieves(config) or config.candidates == "given",
            "candidates",
            f"is 'corpus', which stage {self.name} cannot use; take given",
        )

    def trained(self, config: RunConfig) -> tuple[str, ...]:
        """Return the adapters of `trains` that this run does train."""
        return self.trains

    def evaluators(self, held_out: HeldOut) -> list[Evaluator]:
        """Return what is measured on held-out records: by default the loss."""
        return [held_out.loss()] * ("loss" in held_out.config.hooks.measure)

    def example(
        self,
        make: ExampleMaker,
        record: Record,
        draw: Draw | None = None,
        candidate_ids: np.ndarray | None = None,
    ) -> Example:
        """Make the rows of one record, those that `reads` names.

        Args:
          make, record, draw: as of `dialogue`.
          candidate_ids: numbers that stand for the record's documents where they are
            candidates, which are then not tokenised.

        Raises:
          ClaraError: the record does not fit the stage, or its limits; names the line.
        """
        said, rows = self.dialogue(make, record, draw), {}
        if "prompt" in make.fields:
            rows["prompt"], rows["labels"] = make.prompt(record, said)
        if "documents" in make.fields:
            rows["documents"] = make.documents(said.documents)
        example = Example(source=record.source)
        if "question" in make.fields:
            example = make.ranked(record, said.question, candidate_ids)
        return dataclasses.replace(example, **rows)

    def check_record(self, make: ExampleMaker, record: Record) -> None:
        """Raise what `example` would, but for a prompt that is too long.

        Much faster than making it: only the question is tokenised.
        """
        said = self.dialogue(make, record)
        if "question" in make.fields:
            make.ranked(record, said.question, np.zeros(0, np.int32))

    @property
    def trains_backbone(self) -> bool:
        """Whether the whole model is trained, without adapters."""
        return "backbone" in self.trains

    def needs(self, config: RunConfig) -> set[str]:
        """Return the adapters without which the stage cannot run."""
        roles = {read.role for read in self.reads(config) if read.role}
        if self.compresses(config):
            roles.add("compressor")
        return {"memory", *self.trains, *self.copies, *roles}

    def compresses(self, config: RunConfig) -> bool:
        """Return whether documents are vectors, not text."""
        return bool(self._fields(config) & {"documents", "candidates", "vectors"})

    def retrieves(self, config: RunConfig) -> bool:
        """Return whether questions select documents, and are answered from them."""
        return self._fields(config) >= {"question", "prompt"}

    def caches_vectors(self, config: RunConfig) -> bool:
        """Return whether candidates are vectors before training starts."""
        return "vectors" in self._fields(config)

    def _fields(self, config: RunConfig) -> set[str]:
        return {read.field for read in self.reads(config)}
