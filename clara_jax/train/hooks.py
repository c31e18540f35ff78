"""What happens beside the steps: logging, evaluation, checkpoints, stopping, profiles.

A hook is called after every ``every``-th step and after the last. Hooks run in the
order in which they are listed; evaluation comes before the checkpoint of the same step,
so that what is saved has been evaluated and never is again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.loop import Clock, NotFinite
from clara_jax.train.state import TrainState
from clara_jax.train.writers import Writer


@runtime_checkable
class Evaluator(Protocol):
    """Measures a state on held-out data."""

    def run(self, state: TrainState) -> Iterable[tuple[str, float]]:
        """Yield (name, value) pairs."""
        ...


class StopOnNonFinite:
    """Raise `NotFinite` at the first bad step.

    It reads the flag of the step before, which has been computed by then, so that the
    device never waits. A state does not change once it is unhealthy, so looking one
    step late loses nothing.
    """

    every = 1
    pauses = False

    def __init__(self, steps: int):
        self._last = steps
        self._before: tuple[int, Any] | None = None

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Check the step before this one, and the last step itself."""
        if self._before is not None:
            self._check(*self._before)
        self._before = metrics["step"], metrics["finite"]
        if metrics["step"] == self._last:
            self._check(*self._before)

    @staticmethod
    def _check(step: int, finite: Any) -> None:
        if not bool(finite):
            raise NotFinite(step)


class Log:
    """Hand the scalars of a step to the writers.

    Every value is that of the one step, not a running mean, so that an interrupted and
    an uninterrupted run write the same lines. ``tokens_per_s`` (real tokens, padding
    not counted) covers the steps since the line before, hooks left out.
    """

    pauses = False

    def __init__(self, every: int, writers: Sequence[Writer], clock: Clock):
        self.every = every
        self._writers = writers
        self._clock = clock
        self._mark = (clock.tokens, clock.seconds())

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Fetch the scalars and write them."""
        values = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        step = int(values.pop("step"))
        del values["finite"]
        tokens, seconds = self._clock.tokens, self._clock.seconds()
        passed = max(seconds - self._mark[1], 1e-9)
        values["tokens_per_s"] = (tokens - self._mark[0]) / passed
        values["tokens"] = tokens
        values["seconds"] = seconds
        self._mark = (tokens, seconds)
        for writer in self._writers:
            writer.write(step, values)


class Evaluate:
    """Run the evaluators and write ``eval/<name>``."""

    pauses = True

    def __init__(
        self, every: int, evaluators: Sequence[Evaluator], writers: Sequence[Writer]
    ):
        self.every = every
        self._evaluators = evaluators
        self._writers = writers

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Evaluate, unless the state is the last good one of a failed run."""
        if not bool(state.healthy):
            return
        values = {
            f"eval/{name}": float(value)
            for evaluator in self._evaluators
            for name, value in evaluator.run(state)
        }
        if values:
            for writer in self._writers:
                writer.write(metrics["step"], values)


class Checkpoint:
    """Save the state with the position in the data."""

    pauses = True

    def __init__(
        self,
        every: int,
        checkpoints: Checkpoints,
        extra: Callable[[int], dict[str, Any]],
    ):
        self.every = every
        self._checkpoints = checkpoints
        self._extra = extra

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Save, unless the step was not finite."""
        if bool(state.healthy):
            self.save(state)

    def save(self, state: TrainState) -> int:
        """Save now and return the step saved."""
        step = int(state.step)
        self._checkpoints.save(step, state.saved(), self._extra(step))
        return step


class Profile:
    """Write a profiler trace of some steps (open it with XProf or Perfetto)."""

    every = 1
    pauses = False

    def __init__(self, folder: Path, start: int, steps: int):
        self._folder = folder
        self._start = start
        self._stop = start + steps
        self._running = False

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Start and stop the trace."""
        if metrics["step"] == self._start:
            jax.block_until_ready(state.step)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif metrics["step"] == self._stop:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Stop a trace that the end of the run cut short."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
