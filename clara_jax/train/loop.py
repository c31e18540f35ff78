"""The loop: the only one, for every stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from clara_jax.clara import Batch
from clara_jax.commands import Interrupt
from clara_jax.errors import ClaraError
from clara_jax.train.state import TrainState


@runtime_checkable
class Feed(Protocol):
    """Batches in their order, without end; its position can be saved and restored."""

    def __next__(self) -> Batch:
        """Return the next batch, of numpy arrays."""
        ...

    def get_state(self) -> Any:
        """Return the position as JSON values."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a position of `get_state`."""
        ...


@runtime_checkable
class Hook(Protocol):
    """Called with the state after a step and that step's metrics.

    Attributes:
      every: steps between calls; 0 means never (not even at the end).
      pauses: whether its time counts as training time (False) or not (True).
    """

    every: int
    pauses: bool

    def __call__(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        """Do the work. `metrics` holds ``step`` (int) besides the step's scalars."""
        ...


class NotFinite(ClaraError):
    """A loss or gradient was infinite or not a number.

    Attributes:
      step: the optimizer step (counted from 1) that failed.
      state: the last good state, once the loop has let it pass.
    """

    state: TrainState

    def __init__(self, step: int):
        super().__init__(
            f"the loss or its gradient is not finite at step {step}; "
            "lower optim.learning_rate or check the data"
        )
        self.step = step


class Trail:
    """Where the feed stood at the last steps, so that an earlier state can be saved.

    The loop may be two steps ahead of the last good state when it finds out.
    """

    def __init__(self, feed: Feed, clock: Clock):
        self._feed = feed
        self._clock = clock
        self._notes: dict[int, dict[str, Any]] = {}

    def note(self, step: int) -> None:
        """Remember the position after `step`, before the next batch is drawn."""
        self._notes[step] = self._now()
        for old in [s for s in self._notes if s < step - 3]:
            del self._notes[old]

    def at(self, step: int) -> dict[str, Any]:
        """Return the position after `step`, one of the last few or the present one."""
        return self._notes.get(step) or self._now()

    def _now(self) -> dict[str, Any]:
        return {
            "feed": self._feed.get_state(),
            "tokens": self._clock.tokens,
            "seconds": self._clock.seconds(),
            "wall": self._clock.wall(),
        }


class Clock:
    """Training time and tokens, over all the processes that a run has seen."""

    def __init__(
        self,
        seconds: float = 0.0,
        tokens: int = 0,
        wall: float = 0.0,
        begin: float | None = None,
    ):
        """Go on from what earlier processes have taken.

        Args:
          seconds, tokens, wall: so far.
          begin: when this process began, by ``time.perf_counter``; default: now.
        """
        now = time.perf_counter()
        self._tokens = tokens
        self._pending: list[Callable[[], int]] = []
        self._begin = now - seconds
        self._wall = (now if begin is None else begin) - wall
        self._paused = 0.0

    @property
    def tokens(self) -> int:
        """Real tokens so far; waits for those that are still being added up."""
        self._tokens += sum(count() for count in self._pending)
        self._pending.clear()
        return self._tokens

    def count(self, tokens: Callable[[], int]) -> None:
        """Add tokens, which may still be being added up elsewhere."""
        self._pending.append(tokens)

    def seconds(self) -> float:
        """Seconds of training, pauses left out."""
        return time.perf_counter() - self._begin - self._paused

    def wall(self) -> float:
        """Seconds of everything: start, compilation and pauses too."""
        return time.perf_counter() - self._wall

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count what happens inside."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin


@runtime_checkable
class Pace(Protocol):
    """Knows which step is the last, where the number of steps does not say it."""

    def begin(self, step: int) -> bool:
        """Return whether `step`, which is about to begin, is to be the last."""
        ...


Tally = Callable[..., Callable[[], Sequence[int]]]
"""Begins to add counts up over all processes; what it returns gives the sums."""


def count_tokens(batch: Batch) -> int:
    """Count the real tokens of a batch on the host."""
    rows = (batch.prompt, batch.documents, batch.question, batch.candidates)
    return int(sum(np.sum(tokens.mask) for tokens in rows if tokens is not None))


def fit(
    state: TrainState,
    step_function: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    feed: Feed,
    hooks: Sequence[Hook],
    *,
    steps: int,
    clock: Clock,
    trail: Trail,
    put: Callable[[Batch], Any] = jax.device_put,
    interrupt: Interrupt | None = None,
    tally: Tally | None = None,
    pace: Pace | None = None,
) -> TrainState:
    """Train up to `steps`, or to the step that `pace` calls the last.

    Args:
      state: to start from; donated.
      step_function: a compiled step, with the frozen parts filled in.
      feed: batches, positioned where `state` stopped.
      hooks: called in this order after each step whose number they divide, and after
        the last.
      steps: where to stop, counted from the start of the run.
      clock: counts time and tokens.
      trail: is told the feed's position before every step.
      put: moves a batch to the devices; its result is what the step is given.
      interrupt: a noted signal ends the loop after the step at hand.
      tally: adds up counts of several processes, so that they know all tokens and stop
        after the same step.
      pace: may end the run earlier.

    Returns:
      The state after the last step done.

    Raises:
      NotFinite: with the last good state.
      ClaraError: the data ends early, or whatever a hook raises.
    """
    interrupt = interrupt or Interrupt()
    for step in range(int(state.step) + 1, steps + 1):
        trail.note(step - 1)
        last = step == steps
        if pace is not None:
            last = pace.begin(step) or last
        try:
            batch = next(feed)
        except StopIteration:
            raise ClaraError(
                f"the data ends before step {step} of {steps}; lower optim.steps"
            ) from None
        # Asked for before the step, so that the answer does not wait for it.
        sums = (tally or _alone)(count_tokens(batch), *interrupt.flags)
        clock.count(lambda sums=sums: sums()[0])
        given = put(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = step_function(state, given)
        metrics = {**metrics, "step": step}
        try:
            for hook in hooks:
                if hook.every and (last or step % hook.every == 0):
                    _call(hook, state, metrics, clock)
        except NotFinite as error:
            error.state = state
            raise
        flags = interrupt.flags if tally is None else sums()[1:]
        # Asked in any case, so that all processes know of a signal in the last step.
        if interrupt.agree(flags) or last:
            break
    return state


def _alone(*counts: int) -> Callable[[], Sequence[int]]:
    return lambda: counts


def _call(
    hook: Hook, state: TrainState, metrics: Mapping[str, Any], clock: Clock
) -> None:
    if not hook.pauses:
        hook(state, metrics)
        return
    jax.block_until_ready(state.step)
    with clock.pause():
        hook(state, metrics)
