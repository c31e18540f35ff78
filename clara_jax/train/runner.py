"""One run from its config to its summary: the parts put together."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from clara_jax.clara import Batch, Loss, make_loss
from clara_jax.config import RunConfig, to_dict
from clara_jax.convert import write_model_folder
from clara_jax.data import (
    ExampleMaker,
    Record,
    Records,
    check_records,
    make_batches,
    open_records,
    unique_documents,
)
from clara_jax.errors import ClaraError
from clara_jax.model import Transformer
from clara_jax.sharding import make_mesh, named_sharding
from clara_jax.text import ClaraTokenizer
from clara_jax.train import hooks as hooks_
from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.folder import RunFolder
from clara_jax.train.loop import Clock, Hook, Interrupt, NotFinite, Trail, fit
from clara_jax.train.optim import make_optimizer, make_schedule
from clara_jax.train.start import Start, prepare
from clara_jax.train.state import (
    TrainState,
    count_bytes,
    count_parameters,
    init_state,
)
from clara_jax.train.step import compile_step, make_train_step
from clara_jax.train.vectors import cached_vectors
from clara_jax.train.writers import (
    JsonLines,
    ProgressBar,
    TensorBoard,
    WeightsAndBiases,
    Writer,
)


class Interrupted(Exception):
    """A signal ended the run early; its state is saved.

    Attributes:
      signal: name of the signal.
    """

    def __init__(self, signal: str, message: str):
        super().__init__(message)
        self.signal = signal


@dataclasses.dataclass(frozen=True)
class Parts:
    """What evaluators are built from; nothing in it changes during training.

    Attributes:
      config: of the run.
      model, loss: of the stage.
      backbone, frozen: on the devices.
      tokenizer: with special tokens. eos_ids: ids that end an answer.
      records: held out; empty when the config names none.
      batches: gives the held-out batches, anew at every call.
      put: moves a batch to the devices.
    """

    config: RunConfig
    model: Transformer
    loss: Loss
    backbone: dict[str, Any]
    frozen: dict[str, Any]
    tokenizer: ClaraTokenizer
    eos_ids: tuple[int, ...]
    records: Records | list[Record]
    batches: Callable[[], Iterable[Batch]]
    put: Callable[[Batch], Batch]


EvaluatorFactory = Callable[[Parts], Sequence[hooks_.Evaluator]]


def run(config: RunConfig, evaluators: EvaluatorFactory = lambda parts: ()) -> None:
    """Train one run, or go on with it, up to its summary.

    Args:
      config: the run.
      evaluators: makes what measures states on held-out data.

    Raises:
      ClaraError: bad input, a full disk, a loss that is not finite.
      Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    folder = RunFolder(config.workdir)
    folder.check(config)
    if folder.finished() is not None:
        _say(f"{config.workdir}: already finished")
        return
    with Interrupt().listen() as interrupt, contextlib.ExitStack() as stack:
        _train(config, folder, evaluators, interrupt, stack)


def _train(
    config: RunConfig,
    folder: RunFolder,
    evaluators: EvaluatorFactory,
    interrupt: Interrupt,
    stack: contextlib.ExitStack,
) -> None:
    records = open_records(config.data.train, config.data.format, config.data.limit)
    start_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    start = prepare(config, start_key)
    tokenizer = ClaraTokenizer(start.tokenizer, config.memory.num_memory)
    maker = ExampleMaker(
        tokenizer, config.stage, config.memory, config.data, config.selection.top_k
    )
    for some in (records, _held_out(config)):
        check_records(some, maker)
    mesh = _mesh(config)
    everywhere = named_sharding(mesh)
    backbone, frozen = jax.device_put((start.backbone, start.frozen), everywhere)
    start = dataclasses.replace(start, backbone=backbone, frozen=frozen)
    documents = vectors = None
    if config.data.cache_vectors and config.stage in ("end_to_end", "rerank"):
        folder.claim(config)
        documents = unique_documents(records)
        vectors = cached_vectors(
            folder_of_vectors(config),
            start.model,
            backbone,
            frozen,
            tokenizer,
            config.memory,
            documents,
            stop=lambda: interrupt.signal is not None,
        )
        if vectors is None:
            raise _interrupted(config, interrupt, "the vectors so far are kept")
    batches = make_batches(
        records,
        tokenizer,
        config.stage,
        config.memory,
        config.data,
        top_k=config.selection.top_k,
        seed=config.seed,
        documents=documents,
        vectors=vectors,
    )
    feed: Any = iter(batches)
    steps = config.optim.steps or math.ceil(
        config.optim.epochs * (len(records) // config.data.batch_size)
    )
    schedule = make_schedule(config.optim, steps)
    optimizer = make_optimizer(config.optim, schedule)
    loss = make_loss(
        config.stage,
        num_memory=config.memory.num_memory,
        mse_weight=config.mse_weight,
        selection=config.selection,
    )
    compiled = compile_step(
        make_train_step(
            loss,
            start.model,
            optimizer,
            schedule,
            accumulate=config.optim.accumulate,
        ),
        out_shardings=everywhere,
    )
    state = init_state(start.trainable, optimizer, dropout_key)
    state = jax.device_put(state, everywhere)
    sizes = _sizes(state, start)
    folder.claim(config)
    checkpoints = Checkpoints(folder.checkpoints, config.hooks.keep)
    stack.callback(checkpoints.close)
    kept: dict[str, Any] = {"seconds": 0.0, "tokens": 0}
    newest = checkpoints.latest()
    if newest is not None:
        arrays, kept = checkpoints.restore(newest, state.saved())
        state = jax.device_put(TrainState.restored(arrays), everywhere)
        feed.set_state(kept["feed"])
        _say(f"{config.workdir}: going on after step {newest} of {steps}")
    clock = Clock(kept["seconds"], kept["tokens"])
    trail = Trail(feed, clock)

    def put(batch: Batch) -> Batch:
        rows = jax.tree.leaves(batch)[0].shape[0]
        divides = rows % mesh.size == 0
        return jax.device_put(batch, named_sharding(mesh, "batch" if divides else None))

    parts = Parts(
        config=config,
        model=start.model,
        loss=loss,
        backbone=backbone,
        frozen=frozen,
        tokenizer=tokenizer,
        eos_ids=start.eos_ids,
        records=_held_out(config),
        batches=lambda: iter(()),
        put=put,
    )
    parts = dataclasses.replace(parts, batches=lambda: _eval_batches(parts))
    writers: list[Writer] = [JsonLines(folder.metrics, int(state.step))]
    bar = ProgressBar(Path(config.workdir).name, int(state.step), steps)
    writers.append(bar)
    if config.hooks.tensorboard:
        writers.append(TensorBoard(folder.path / "tensorboard"))
    if config.hooks.wandb:
        writers.append(WeightsAndBiases(folder.path, to_dict(config)))
    for writer in writers:
        stack.callback(writer.close)
    saver = hooks_.Checkpoint(
        config.hooks.checkpoint_every or steps, checkpoints, trail.at
    )
    evaluate = hooks_.Evaluate(
        config.hooks.eval_every or steps, evaluators(parts), writers
    )
    if config.hooks.eval_first and newest is None:
        evaluate(state, {"step": 0})
    hooks: list[Hook] = [
        bar,
        hooks_.Log(config.hooks.log_every, writers, clock),
        hooks_.StopOnNonFinite(steps),
        evaluate,
        saver,
    ]
    if config.hooks.profile_steps:
        begin = int(state.step) + 10
        hooks.append(
            hooks_.Profile(folder.path / "profile", begin, config.hooks.profile_steps)
        )

    def step_function(state: TrainState, batch: Batch):
        return compiled(state, backbone, frozen, batch)

    try:
        state = fit(
            state,
            step_function,
            feed,
            hooks,
            steps=steps,
            clock=clock,
            trail=trail,
            put=put,
            interrupt=interrupt,
        )
    except NotFinite as error:
        saved = saver.save(error.state)
        _write_result(config, folder, start, error.state)
        raise ClaraError(
            f"{error}; the state after step {saved} is saved in {folder.path}, which "
            "can be another run's init_from"
        ) from error
    if int(state.step) < steps:
        saved = saver.save(state)
        raise _interrupted(config, interrupt, f"step {saved} of {steps} is saved")
    _write_result(config, folder, start, state)
    summary = folder.write_summary(config, parameters=sizes)
    bar.close()
    _say(
        f"{config.workdir}: {steps} steps in {summary['seconds']:.0f} s, "
        f"{summary['tokens_per_s']:,.0f} tokens/s, "
        f"loss {summary['final'].get('loss', math.nan):.4f}"
    )


def folder_of_vectors(config: RunConfig) -> Path:
    """Where a run keeps the vectors of its training documents."""
    return Path(config.workdir) / "vectors"


def _mesh(config: RunConfig) -> jax.sharding.Mesh:
    """All devices, or as many as share the rows of a microbatch evenly."""
    rows = config.data.batch_size // config.optim.accumulate
    count = math.gcd(rows, jax.device_count())
    if count < jax.device_count():
        _say(
            f"using {count} of {jax.device_count()} devices: they share "
            f"{rows} rows (data.batch_size / optim.accumulate)"
        )
    return make_mesh(devices=jax.devices()[:count])


def _held_out(config: RunConfig) -> Records | list[Record]:
    if not config.data.eval:
        return []
    limits = [n for n in (config.data.eval_limit, config.hooks.eval_limit) if n]
    limit = min(limits, default=0)
    return open_records(config.data.eval, config.data.format, limit)


def _eval_batches(parts: Parts) -> Iterable[Batch]:
    config = parts.config
    if not len(parts.records):
        return ()
    return make_batches(
        parts.records,
        parts.tokenizer,
        config.stage,
        config.memory,
        config.data,
        top_k=config.selection.top_k,
        train=False,
    )


def _write_result(
    config: RunConfig, folder: RunFolder, start: Start, state: TrainState
) -> None:
    write_model_folder(folder.path, start.folder(config, state.trainable), update=True)


def _sizes(state: TrainState, start: Start) -> dict[str, int]:
    """Numbers and bytes of what is trained and what is frozen."""
    frozen = (start.backbone, start.frozen)
    return {
        "trainable": count_parameters(state.trainable),
        "trainable_bytes": count_bytes(state.trainable),
        "frozen": count_parameters(frozen),
        "frozen_bytes": count_bytes(frozen),
        "optimizer_bytes": count_bytes(state.opt_state),
    }


def _interrupted(config: RunConfig, interrupt: Interrupt, what: str) -> Interrupted:
    return Interrupted(
        str(interrupt.signal),
        f"{interrupt.signal}: {what} in {config.workdir}; "
        "start the same command again to go on",
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
