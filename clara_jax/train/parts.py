"""What one run is built from before its first step."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from clara_jax.clara import Batch, Loss, Network, vector_fingerprint
from clara_jax.config import MeshConfig, RunConfig
from clara_jax.data import (
    ExampleMaker,
    Record,
    Records,
    check_records,
    make_batches,
    open_records,
)
from clara_jax.errors import ClaraError
from clara_jax.evaluate import Evaluator, HeldOutLoss, Question, questions_of
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.model import logical_axes
from clara_jax.search import Store
from clara_jax.search.exact import Searcher, free_memory
from clara_jax.search.scann_index import open_searcher
from clara_jax.sharding import (
    batch_parts,
    make_mesh,
    tree_shardings,
)
from clara_jax.stages import Stage, find_stage
from clara_jax.text import ClaraTokenizer
from clara_jax.train.placement import Placer
from clara_jax.train.start import Start, prepare
from clara_jax.train.state import (
    TrainState,
    count_bytes,
    count_parameters,
    init_state,
    make_optimizer,
    make_schedule,
)
from clara_jax.train.step import (
    StepFunction,
    compile_on_mesh,
    make_eval_step,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The pieces of a run; nothing in it changes during training.

    Attributes:
      config: of the run.
      start: backbone and frozen adapters, on the devices, and what starts to train.
      stage: of the config.
      objective: what a step minimises.
      make: makes the examples of records.
      train, records: training and held-out records; the latter may be empty.
      mesh: the devices.
      key: of dropout.
      store: the compressed corpus that the config names, or None.
    """

    config: RunConfig
    start: Start
    stage: Stage
    objective: Loss
    make: ExampleMaker
    train: Records
    records: Records | list[Record]
    mesh: jax.sharding.Mesh
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
        """Return the search over the store, opened where it is first asked for."""
        return self._search

    @functools.cached_property
    def _search(self) -> Searcher:
        """Open the search.

        An exact search takes a quarter of the devices' free memory at most, and leaves
        the rest to the steps; it reads a larger store from disk at every call.
        """
        assert self.store is not None
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
        step = make_eval_step(self.objective)
        put = self.evaluation.put
        return HeldOutLoss(step, self.network, self.batches, put, shuffled)

    def evaluators(self) -> list[Evaluator]:
        """Return what the stage measures; nothing without held-out records."""
        return self.stage.evaluators(self) if len(self.records) else []


def assemble(config: RunConfig, say: Callable[[str], None]) -> Parts:
    """Open data and model, and put what is frozen on the devices.

    Args:
      config: of the run.
      say: takes remarks for the user.

    Returns:
      The parts.

    Raises:
      ClaraError: records, weights or a store that are missing, damaged or do not fit.
    """
    stage = find_stage(config)
    if config.dtype == "float16" and jax.default_backend() == "cpu":
        raise ClaraError(
            "config field 'dtype': a CPU does not compute in float16; take float32"
        )
    if config.store:
        Store.open(config.store)  # a wrong one is told before weights are read
    train = open_records(config.data.train, config.data.format, config.data.limit)
    records: Records | list[Record] = []
    if config.data.eval:
        limit = config.hooks.eval_limit
        records = open_records(config.data.eval, config.data.format, limit)
    start_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    mesh = _mesh(config, say)
    start = prepare(
        config, start_key, lambda tree: tree_shardings(mesh, tree, logical_axes)
    )
    tokenizer = ClaraTokenizer(start.tokenizer, config.memory.num_memory)
    store = _open_store(config, start) if config.store else None
    make = ExampleMaker(stage, tokenizer, config)
    for some in (train, records):
        check_records(some, make)
    return Parts(
        config=config,
        start=start,
        stage=stage,
        objective=stage.loss(config),
        make=make,
        train=train,
        records=records,
        mesh=mesh,
        key=dropout_key,
        store=store,
    )


def _open_store(config: RunConfig, start: Start) -> Store:
    """Open the corpus, if this run's compressor has made it and it is large enough."""
    fingerprint = vector_fingerprint(start.network)
    store = Store.open(config.store, fingerprint)
    if config.candidates == "corpus" and len(store) < config.data.candidates:
        raise ClaraError(
            f"config field 'data.candidates': is {config.data.candidates}, but "
            f"{config.store} holds {len(store)} documents; lower it"
        )
    return store


def first_state(parts: Parts) -> tuple[TrainState, StepFunction]:
    """Make the state of step 0, on the devices, and the compiled train step."""
    optim = parts.config.optim
    schedule = make_schedule(optim, parts.steps)
    optimizer = make_optimizer(optim, schedule)
    step = make_train_step(
        parts.objective, optimizer, schedule, accumulate=optim.accumulate
    )

    def init(trainable: dict[str, Any], key: Any) -> TrainState:
        return init_state(trainable, optimizer, key)

    shapes = jax.eval_shape(init, parts.start.trainable, parts.key)
    shardings = tree_shardings(parts.mesh, shapes, logical_axes)
    state = jax.jit(init, out_shardings=shardings)(parts.start.trainable, parts.key)
    return (
        state,
        compile_on_mesh(step, parts.mesh, state),
    )


def sizes(parts: Parts, state: TrainState) -> dict[str, int]:
    """Count numbers and bytes of what is trained and what is frozen."""
    frozen = parts.network
    return {
        "trainable": count_parameters(state.trainable),
        "trainable_bytes": count_bytes(state.trainable),
        "frozen": count_parameters(frozen),
        "frozen_bytes": count_bytes(frozen),
        "optimizer_bytes": count_bytes(state.opt_state),
    }


def _mesh(config: RunConfig, say: Callable[[str], None]) -> jax.sharding.Mesh:
    """The mesh asked for; else all devices that share a microbatch's rows evenly."""
    rows = config.data.batch_size // config.optim.accumulate
    if config.mesh != MeshConfig():
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
        if rows % batch_parts(mesh):
            raise ClaraError(
                f"config field 'mesh': its {batch_parts(mesh)} parts of a batch do not "
                f"divide {rows} rows (data.batch_size / optim.accumulate)"
            )
        return mesh
    count = math.gcd(rows, jax.device_count())
    if jax.process_count() > 1 and count < jax.device_count():
        tensor = jax.device_count() // count
        say(
            f"mesh: {count} parts of {rows} rows (data.batch_size / optim.accumulate), "
            f"each on {tensor} devices that share the matrix products"
        )
        return make_mesh(data=count, tensor=tensor)
    if count < jax.device_count():
        say(
            f"using {count} of {jax.device_count()} devices: they share "
            f"{rows} rows (data.batch_size / optim.accumulate)"
        )
    return make_mesh(devices=jax.devices()[:count])
