"""One run from its config to its summary; `run` reads from top to bottom.

config -> records, weights, corpus (`assemble`) -> batches -> state and step -> the
newest checkpoint -> hooks -> the loop -> a model folder and ``summary.json``
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.clara import Batch, vector_fingerprint
from clara_jax.commands import Interrupt
from clara_jax.config import MeshConfig, RunConfig, require, to_dict
from clara_jax.convert import write_model_folder
from clara_jax.data import ExampleMaker, Record, Records, check_records, open_records
from clara_jax.distributed import first, from_host, gather, is_first, report
from clara_jax.errors import ClaraError
from clara_jax.model import logical_axes
from clara_jax.search import Store
from clara_jax.sharding import batch_parts, make_mesh, named_sharding, tree_shardings
from clara_jax.stages import find_stage
from clara_jax.text import ClaraTokenizer
from clara_jax.train import hooks
from clara_jax.train.checkpoints import Checkpoints, fingerprint
from clara_jax.train.deadline import Deadline
from clara_jax.train.feeds import make_feed
from clara_jax.train.loop import Hook, NotFinite, Run, fit
from clara_jax.train.parts import Parts
from clara_jax.train.placement import Tally
from clara_jax.train.run_folder import RunFolder
from clara_jax.train.state import (
    TrainState,
    count_bytes,
    count_parameters,
    init_state,
    make_optimizer,
    make_schedule,
    rate_at,
)
from clara_jax.train.step import StepFunction, compile_on_mesh, make_train_step
from clara_jax.train.weights import load_start


def run(config: RunConfig, *, whole: float | None = None) -> None:
    """Train one run, or go on with it, up to its summary.

    Args:
      config: the run.
      whole: with ``config.minutes``, the seconds of which these are a share; see
        `deadline.Deadline`.

    Raises:
      ClaraError: bad input, a full disk, a loss that is not finite.
      Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    begin = time.perf_counter()
    seconds = 60 * config.minutes
    folder = RunFolder(config.workdir)
    if first(partial(folder.finished, config)):
        report(f"{config.workdir}: already finished")
        return
    claim = partial(first, partial(folder.claim, config))

    def kept(what: str) -> str:
        return f"{what} in {config.workdir}" if is_first() else ""

    with Interrupt().listen() as interrupt, contextlib.ExitStack() as stack:
        stack.callback(folder.close)
        parts = assemble(config)
        stack.enter_context(jax.set_mesh(parts.mesh))

        # Batches; document vectors that are made once are made here.
        def check() -> None:
            if interrupt.agree(gather(np.array(interrupt.flags)).sum(0).tolist()):
                interrupt.check(kept("the vectors so far are kept"))

        def late() -> bool:
            return time.perf_counter() - begin >= seconds / 2

        feed, corpus = make_feed(parts, claim, check, late if seconds else None)
        if corpus is not None:
            stack.callback(corpus.close)

        # The state, as of the newest checkpoint if there is one.
        state, compiled = first_state(parts)
        sizes = {
            "trainable": count_parameters(state.trainable),
            "trainable_bytes": count_bytes(state.trainable),
            "frozen": count_parameters(parts.network),
            "frozen_bytes": count_bytes(parts.network),
            "optimizer_bytes": count_bytes(state.opt_state),
        }
        claim()
        frozen = fingerprint(parts.network)
        checkpoints = Checkpoints(folder.checkpoints, config.hooks.keep, frozen)
        stack.callback(checkpoints.close)
        newest, position = None, None
        if found := checkpoints.restore_newest(state.saved()):
            newest, arrays, position = found
            places = jax.tree.map(lambda x: x.sharding, state)
            state = jax.jit(TrainState.restored, out_shardings=places)(arrays)
            report(f"{config.workdir}: going on after step {newest} of {parts.steps}")

        # The run, and what happens beside its steps.
        run = Run(
            feed,
            parts.steps,
            kept=position,
            begin=begin,
            interrupt=interrupt,
            tally=Tally(parts.mesh) if jax.process_count() > 1 else None,
            deadline=Deadline(parts.steps, seconds, whole) if seconds else None,
        )
        writers: list[hooks.Writer] = []
        if is_first():
            for writer in _writers(config, folder, newest, run.steps):
                stack.callback(writer.close)
                writers.append(writer)
        settings = config.hooks
        every = settings.eval_every or run.steps
        evaluate = hooks.Evaluate(every, parts.evaluators(), writers)
        if settings.eval_first and newest is None:
            with run.pause():
                evaluate(state, {"step": 0})
        every = settings.checkpoint_every or run.steps
        saver = hooks.Checkpoint(every, checkpoints, run.position)
        beside: list[Hook] = [
            *(writer for writer in writers if isinstance(writer, hooks.ProgressBar)),
            hooks.Log(settings.log_every, writers, run),
            hooks.StopOnNonFinite(run.steps),
            evaluate,
            saver,
        ]
        if settings.profile_steps:
            begins = (newest or 0) + 10
            trace = folder.path / "profile"
            profile = hooks.Profile(trace, begins, settings.profile_steps)
            beside.append(profile)
            stack.callback(profile.close)
        if corpus is not None:
            # Before all others, which may wait for the step or raise.
            beside.insert(0, corpus)
            corpus.prime(state)

        # The steps.
        def put(batch: Batch) -> tuple[Batch, Any]:
            rate = None
            if run.deadline is not None:
                value = rate_at(config.optim, run.deadline.progress)
                rate = from_host(value, named_sharding(parts.mesh))
            return parts.training.put(batch), rate

        def step_function(state: TrainState, given: tuple[Batch, Any]):
            return compiled(state, parts.network, *given)

        try:
            state = fit(state, step_function, run, beside, put)
            if run.deadline is not None and not bool(state.healthy):
                raise NotFinite(int(state.step) + 1, state)
        except NotFinite as error:
            saved = saver.save(error.state)
            checkpoints.wait()
            _write_result(parts, folder, error.state)
            raise ClaraError(
                f"{error}; the state after step {saved} is saved in {folder.path}, "
                "which can be another run's init_from"
            ) from error
        done = int(state.step)
        if done < run.steps and interrupt.signal is not None:
            saver.save(state)
            checkpoints.wait()
            interrupt.check(kept(f"step {done} of {run.steps} is saved"))

        # What is left of it.
        checkpoints.wait()
        _write_result(parts, folder, state)
        facts: dict[str, Any] = {"parameters": sizes, "wall_seconds": run.wall()}
        steps = str(done)
        if done < run.steps:
            steps = f"{done} of {run.steps}"
            facts["cut"] = {"steps": done, "of": run.steps, "minutes": config.minutes}
        summary = first(lambda: folder.write_summary(config, **facts))
    report(
        f"{config.workdir}: {steps} steps in {summary['seconds']:.0f} s, "
        f"{summary['tokens_per_s']:,.0f} tokens/s, "
        f"loss {summary['final'].get('loss', math.nan):.4f}"
    )


def assemble(config: RunConfig) -> Parts:
    """Open data and model, and put what is frozen on the devices.

    Raises:
      ClaraError: records, weights or a store that are missing, damaged or do not fit.
    """
    stage = find_stage(config)
    computes = config.dtype != "float16" or jax.default_backend() != "cpu"
    require(computes, "dtype", "a CPU does not compute in float16; take float32")
    if config.store:
        Store.open(config.store)  # a wrong one is reported before weights are read
    data = config.data
    how: Any = {"fields": data.fields, "encoding": data.encoding}
    train = open_records(data.train, data.format, data.limit, **how)
    records: Records | list[Record] = []
    if data.eval:
        limit = config.hooks.eval_limit
        records = open_records(data.eval, data.format, limit, **how)
    mesh = _mesh(config)
    start_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    start = load_start(
        config, start_key, lambda tree: tree_shardings(mesh, tree, logical_axes)
    )
    store = None
    if config.store:
        store = Store.open(config.store, vector_fingerprint(start.network))
        count = config.data.candidates
        few = f"is {count}, but {config.store} holds {len(store)} documents; lower it"
        enough = config.candidates != "corpus" or len(store) >= count
        require(enough, "data.candidates", few)
    tokenizer = ClaraTokenizer(
        start.tokenizer,
        config.memory.num_memory,
        control_tokens=config.data.control_tokens,
    )
    make = ExampleMaker(stage, tokenizer, config)
    for some in (train, records):
        check_records(some, make)
    return Parts(
        config=config,
        mesh=mesh,
        start=start,
        make=make,
        train=train,
        records=records,
        key=dropout_key,
        store=store,
    )


def _mesh(config: RunConfig) -> jax.sharding.Mesh:
    """Make the mesh asked for; else of all devices that share rows evenly."""
    rows = config.data.batch_size // config.optim.accumulate
    if config.mesh != MeshConfig():
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
        uneven = (
            f"its {batch_parts(mesh)} parts of a batch do not divide {rows} rows "
            "(data.batch_size / optim.accumulate)"
        )
        require(rows % batch_parts(mesh) == 0, "mesh", uneven)
        return mesh
    everything = jax.device_count()
    count = math.gcd(rows, everything)
    if jax.process_count() > 1 and count < everything:
        tensor = everything // count
        report(
            f"mesh: {count} parts of {rows} rows (data.batch_size / optim.accumulate), "
            f"each on {tensor} devices that share the matrix products"
        )
        return make_mesh(data=count, tensor=tensor)
    if count < everything:
        report(
            f"using {count} of {everything} devices: they share "
            f"{rows} rows (data.batch_size / optim.accumulate)"
        )
    return make_mesh(devices=jax.devices()[:count])


def first_state(parts: Parts) -> tuple[TrainState, StepFunction]:
    """Make the state of step 0, on the devices, and the compiled train step."""
    optim = parts.config.optim
    schedule = make_schedule(optim, parts.steps)
    optimizer = make_optimizer(optim, schedule)
    loss = parts.make.stage.loss(parts.config)
    step = make_train_step(loss, optimizer, schedule, accumulate=optim.accumulate)

    def init(trainable: dict[str, Any], key: Any) -> TrainState:
        return init_state(trainable, optimizer, key)

    shapes = jax.eval_shape(init, parts.start.trainable, parts.key)
    shardings = tree_shardings(parts.mesh, shapes, logical_axes)
    state = jax.jit(init, out_shardings=shardings)(parts.start.trainable, parts.key)
    return state, compile_on_mesh(step, parts.mesh, state)


def _writers(
    config: RunConfig, folder: RunFolder, newest: int | None, steps: int
) -> Iterator[hooks.Writer]:
    """Make what scalars go to, one by one; lines after step `newest` are dropped."""
    yield hooks.ProgressBar(Path(config.workdir).name, newest or 0, steps)
    yield hooks.JsonLines(folder.metrics, newest)
    if config.hooks.tensorboard:
        yield hooks.TensorBoard(folder.path / "tensorboard", newest)
    if config.hooks.wandb:
        # The lines that are left of the steps up to the newest checkpoint.
        lines = hooks.read_lines(folder.metrics)
        project = config.hooks.wandb_project
        yield hooks.WeightsAndBiases(folder.path, to_dict(config), project, lines)


def _write_result(parts: Parts, folder: RunFolder, state: TrainState) -> None:
    result = parts.start.folder(parts.config, state.trainable)
    first(lambda: write_model_folder(folder.path, result, update=True))
