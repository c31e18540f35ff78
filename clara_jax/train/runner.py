"""One run from its config to its summary: the parts put together."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clara_jax.clara import Batch
from clara_jax.commands import Interrupt, Interrupted
from clara_jax.config import RunConfig, to_dict
from clara_jax.convert import write_model_folder
from clara_jax.distributed import first, from_host, gather, is_first
from clara_jax.errors import ClaraError
from clara_jax.sharding import named_sharding
from clara_jax.train import hooks as hooks_
from clara_jax.train.checkpoints import Checkpoints, fingerprint
from clara_jax.train.corpus_feed import CorpusFeed
from clara_jax.train.deadline import Deadline
from clara_jax.train.feeds import make_feed
from clara_jax.train.hooks import (
    JsonLines,
    ProgressBar,
    TensorBoard,
    WeightsAndBiases,
    Writer,
)
from clara_jax.train.loop import (
    Clock,
    Feed,
    Hook,
    NotFinite,
    Trail,
    fit,
)
from clara_jax.train.parts import Parts, assemble, first_state, sizes
from clara_jax.train.placement import Tally
from clara_jax.train.run_folder import RunFolder
from clara_jax.train.state import TrainState, rate_at


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
    folder = RunFolder(config.workdir)

    def finished() -> bool:
        folder.check(config)
        return folder.finished() is not None

    if first(finished):
        _say(f"{config.workdir}: already finished")
        return
    with Interrupt().listen() as interrupt, contextlib.ExitStack() as stack:
        stack.callback(folder.close)
        parts = assemble(config, _say)
        with jax.set_mesh(parts.mesh):
            timing = _Timing(begin, 60 * config.minutes, whole)
            made = make_feed(
                parts,
                _say,
                claim=lambda: first(lambda: folder.claim(config)),
                stop=lambda: interrupt.agree(
                    gather(np.array(interrupt.flags)).sum(0).tolist()
                ),
                late=timing.half_over if timing.seconds else None,
            )
            if made is None:
                raise _interrupted(config, interrupt, "the vectors so far are kept")
            feed, corpus = made
            if corpus is not None:
                stack.callback(corpus.close)
            _train(parts, feed, corpus, folder, interrupt, stack, timing)


class _Timing(NamedTuple):
    """When this process began with the run, and what it may take; 0 for any time."""

    begin: float
    seconds: float
    whole: float | None

    def half_over(self) -> bool:
        """Whether half of the time has passed since this process began."""
        return time.perf_counter() - self.begin >= self.seconds / 2


def _train(
    parts: Parts,
    feed: Feed,
    corpus: CorpusFeed | None,
    folder: RunFolder,
    interrupt: Interrupt,
    stack: contextlib.ExitStack,
    timing: _Timing,
) -> None:
    """Go on from the newest checkpoint, or begin, and train to the end."""
    config, steps = parts.config, parts.steps
    state, compiled = first_state(parts)
    parameters = sizes(parts, state)
    first(lambda: folder.claim(config))
    checkpoints = Checkpoints(
        folder.checkpoints,
        config.hooks.keep,
        fingerprint(parts.network),
    )
    stack.callback(checkpoints.close)
    newest, state, kept = _resumed(checkpoints, state)
    if newest is not None:
        feed.set_state(kept["feed"])
        _say(f"{config.workdir}: going on after step {newest} of {steps}")
    clock = Clock(kept["seconds"], kept["tokens"], kept.get("wall", 0.0), timing.begin)
    deadline = None
    if timing.seconds:
        deadline = Deadline(clock, steps, timing.seconds, timing.whole)
    trail = Trail(feed, clock)
    writers: list[Writer] = []
    if is_first():
        bar = ProgressBar(Path(config.workdir).name, newest or 0, steps)
        writers = [bar, *_writers(config, folder, newest)]
    for writer in writers:
        stack.callback(writer.close)
    every = config.hooks.checkpoint_every or steps
    saver = hooks_.Checkpoint(every, checkpoints, trail.at)
    every = config.hooks.eval_every or steps
    evaluate = hooks_.Evaluate(every, parts.evaluators(), writers)
    if config.hooks.eval_first and newest is None:
        with clock.pause():
            evaluate(state, {"step": 0})
    hooks: list[Hook] = [
        *(writer for writer in writers if isinstance(writer, ProgressBar)),
        hooks_.Log(config.hooks.log_every, writers, clock),
        hooks_.StopOnNonFinite(steps),
        evaluate,
        saver,
    ]
    if config.hooks.profile_steps:
        begin = (newest or 0) + 10
        profile = hooks_.Profile(
            folder.path / "profile", begin, config.hooks.profile_steps
        )
        hooks.append(profile)
        stack.callback(profile.close)

    if corpus is not None:
        # Before all others, which may wait for the step or raise.
        hooks.insert(0, corpus)
        corpus.prime(state)

    def put(batch: Batch) -> tuple[Batch, Any]:
        rate = None
        if deadline is not None:
            value = rate_at(config.optim, deadline.progress)
            rate = from_host(value, named_sharding(parts.mesh))
        return parts.training.put(batch), rate

    def step_function(state: TrainState, given: tuple[Batch, Any]):
        return compiled(state, parts.network, *given)

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
            tally=Tally(parts.mesh, 3) if jax.process_count() > 1 else None,
            pace=deadline,
        )
        if deadline is not None and not bool(state.healthy):
            error = NotFinite(int(state.step) + 1)
            error.state = state
            raise error
    except NotFinite as error:
        saved = saver.save(error.state)
        checkpoints.wait()
        _write_result(parts, folder, error.state)
        raise ClaraError(
            f"{error}; the state after step {saved} is saved in {folder.path}, which "
            "can be another run's init_from"
        ) from error
    done = int(state.step)
    cut = done < steps and deadline is not None and interrupt.signal is None
    if done < steps and not cut:
        saved = saver.save(state)
        checkpoints.wait()
        raise _interrupted(config, interrupt, f"step {saved} of {steps} is saved")
    checkpoints.wait()
    _write_result(parts, folder, state)
    facts = {"parameters": parameters, "wall_seconds": clock.wall()}
    if cut:
        facts["cut"] = {"steps": done, "of": steps, "minutes": config.minutes}
    summary = first(lambda: folder.write_summary(config, **facts))
    for writer in writers[:1]:
        writer.close()
    _say(
        f"{config.workdir}: {f'{done} of {steps}' if cut else done} steps in "
        f"{summary['seconds']:.0f} s, "
        f"{summary['tokens_per_s']:,.0f} tokens/s, "
        f"loss {summary['final'].get('loss', math.nan):.4f}"
    )


def _resumed(
    checkpoints: Checkpoints, state: TrainState
) -> tuple[int | None, TrainState, dict[str, Any]]:
    """The newest whole state with what was noted beside it, else the state given."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    found = checkpoints.restore_newest(state.saved(), _say)
    if found is None:
        return None, state, {"seconds": 0.0, "tokens": 0}
    step, arrays, kept = found
    restore = jax.jit(TrainState.restored, out_shardings=shardings)
    return step, restore(arrays), kept


def _writers(config: RunConfig, folder: RunFolder, newest: int | None) -> list[Writer]:
    """Where scalars go besides the progress bar; lines after `newest` are dropped."""
    writers: list[Writer] = [JsonLines(folder.metrics, newest)]
    if config.hooks.tensorboard:
        writers.append(TensorBoard(folder.path / "tensorboard", newest))
    if config.hooks.wandb:
        writers.append(WeightsAndBiases(folder.path, to_dict(config)))
    return writers


def _write_result(parts: Parts, folder: RunFolder, state: TrainState) -> None:
    result = parts.start.folder(parts.config, state.trainable)
    first(lambda: write_model_folder(folder.path, result, update=True))


def _interrupted(config: RunConfig, interrupt: Interrupt, what: str) -> Interrupted:
    return Interrupted(
        str(interrupt.signal),
        f"{interrupt.signal}: {what} in {config.workdir}; "
        "start the same command again to go on",
    )


def _say(message: str) -> None:
    if not is_first():
        return
    print(message, file=sys.stderr, flush=True)
