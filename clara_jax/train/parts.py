"""What the steps and the evaluations of one run are made of."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax

from clara_jax.clara import Batch, Network
from clara_jax.config import RunConfig
from clara_jax.data import ExampleMaker, Record, Records, make_batches
from clara_jax.evaluate import Evaluator, HeldOutLoss, Question, questions_of
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.search import Store
from clara_jax.search.exact import Searcher, free_memory
from clara_jax.search.scann_index import open_searcher
from clara_jax.text import ClaraTokenizer
from clara_jax.train.placement import Placer
from clara_jax.train.step import make_eval_step
from clara_jax.train.weights import Start


@dataclasses.dataclass(frozen=True)
class Parts:
    """The pieces of a run; nothing in it changes during training.

    Attributes:
      start: backbone and frozen adapters, on the devices, and what starts to train.
      make: makes the examples of records.
      train: training records.
      records: held-out records; may be empty.
      key: of dropout.
      store: the compressed corpus that the config names, or None.
    """

    config: RunConfig
    mesh: jax.sharding.Mesh
    start: Start
    make: ExampleMaker
    train: Records
    records: Records | list[Record]
    key: Any
    store: Store | None = None

    @property
    def tokenizer(self) -> ClaraTokenizer:
        """The tokenizer with special tokens."""
        return self.make.tokenizer

    @property
    def network(self) -> Network:
        """All that is frozen."""
        return self.start.network

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        optim = self.config.optim
        an_epoch = len(self.train) // self.config.data.batch_size
        return optim.steps or math.ceil(optim.epochs * an_epoch)

    @functools.cached_property
    def training(self) -> Placer:
        """Puts training batches on the devices."""
        return Placer(self.mesh, self.config.data.batch_size)

    @functools.cached_property
    def evaluation(self) -> Placer:
        """Puts held-out batches on the devices."""
        data = self.config.data
        return Placer(self.mesh, data.eval_batch_size or data.batch_size)

    def searcher(self) -> Searcher:
        """Return the search over the store, opened when it is first asked for."""
        return self._searcher

    @functools.cached_property
    def _searcher(self) -> Searcher:
        assert self.store is not None
        # An exact search leaves the rest of the free memory to the steps, and reads a
        # larger store from disk at every call.
        limit = free_memory(jax.local_devices()) // 4
        return open_searcher(self.store, self.config.search, memory_limit=limit)

    def batches(self) -> Iterable[Batch]:
        """Return the held-out batches with their own candidates, from the beginning."""
        if not len(self.records):
            return ()
        part = self.evaluation.part
        return make_batches(self.records, self.make, train=False, part=part)

    @property
    def questions(self) -> list[Question]:
        """Questions of the held-out records."""
        return questions_of(self.records)

    @property
    def clara(self) -> Clara:
        """The model as it answers, with the frozen adapters."""
        config = self.config
        return Clara(
            network=self.network,
            tokenizer=self.tokenizer,
            memory=config.memory,
            selection=config.selection,
            config=AnswerConfig(
                max_new_tokens=config.hooks.max_new_tokens,
                eos_ids=self.start.eos_ids,
                batch_size=config.data.eval_batch_size or config.data.batch_size,
                prompt_max_length=config.data.prompt_max_length,
                question_max_length=config.data.question_max_length,
                too_long=config.data.too_long,
            ),
        )

    def loss(self, shuffled: bool = False) -> Evaluator:
        """Make the evaluator of the stage's loss, or of it with others' documents."""
        step = make_eval_step(self.make.stage.loss(self.config))
        put = self.evaluation.put
        return HeldOutLoss(step, self.network, self.batches, put, shuffled)

    def evaluators(self) -> list[Evaluator]:
        """Return what the stage measures; nothing without held-out records."""
        return self.make.stage.evaluators(self) if len(self.records) else []
