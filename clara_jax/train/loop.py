"""The loop: the only one, for every stage."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from clara_jax.clara import Batch
from clara_jax.commands import Interrupt
from clara_jax.errors import ClaraError
from clara_jax.train.deadline import Deadline
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
      state: the last good state.
    """

    def __init__(self, step: int, state: TrainState):
        super().__init__(
            f"the loss or its gradient is not finite at step {step}; "
            "lower optim.learning_rate or check the data"
        )
        self.step, self.state = step, state


Tally = Callable[..., Callable[[], Sequence[int]]]
"""Begin to add counts up over all processes; what it returns gives the sums."""


class Run:
    """How far a run is, what it has used, and when it ends.

    Args:
      feed: the batches.
      steps: optimizer steps from its start to its end.
      kept: what `position` gave, from a checkpoint; the feed goes there.
      begin: when this process began, by ``time.perf_counter``; default: now.
      interrupt: a noted signal ends the run after the step at hand.
      tally: adds up counts of several processes, so that they know all tokens and stop
        after the same step.
      deadline: may end it earlier; None for no such end.
    """

    def __init__(
        self,
        feed: Feed,
        steps: int,
        *,
        kept: Mapping[str, Any] | None = None,
        begin: float | None = None,
        interrupt: Interrupt | None = None,
        tally: Tally | None = None,
        deadline: Deadline | None = None,
    ):
        kept = kept or {}
        if kept:
            feed.set_state(kept["feed"])
        self.steps, self.deadline = steps, deadline
        self.interrupt = interrupt or Interrupt()
        self._feed, self._tally = feed, tally
        self._tokens = kept.get("tokens", 0)
        self._pending: list[Callable[[], Sequence[int]]] = []
        now = time.perf_counter()
        self._begin = now - kept.get("seconds", 0.0)
        self._wall = (now if begin is None else begin) - kept.get("wall", 0.0)
        self._paused = 0.0
        self._positions: dict[int, dict[str, Any]] = {}

    @property
    def tokens(self) -> int:
        """Real tokens so far; waits for those that are still being added up."""
        self._tokens += sum(sums()[0] for sums in self._pending)
        self._pending.clear()
        return self._tokens

    def seconds(self) -> float:
        """Return the seconds of training, pauses left out."""
        return time.perf_counter() - self._begin - self._paused

    def wall(self) -> float:
        """Return the seconds of everything: start, compilation and pauses too."""
        return time.perf_counter() - self._wall

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count what happens inside as training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def position(self, step: int) -> dict[str, Any]:
        """Return where the run stood after `step`, one of the last few, or stands now.

        The loop may be two steps ahead of the last good state when it finds out.
        """
        return self._positions.get(step) or {
            "feed": self._feed.get_state(),
            "tokens": self.tokens,
            "seconds": self.seconds(),
            "wall": self.wall(),
        }

    def steps_after(self, done: int) -> Iterator[tuple[int, Batch, bool]]:
        """Yield number and batch of each step after `done`, and whether it is the last.

        Raises:
          ClaraError: the data ends early, or the deadline leaves no time.
        """
        for number in range(done + 1, self.steps + 1):
            self._positions[number - 1] = self.position(number - 1)
            self._positions.pop(number - 5, None)
            last = number == self.steps
            if self.deadline is not None:
                last = self.deadline.begin(number, self.wall()) or last
            try:
                batch = next(self._feed)
            except StopIteration:
                raise ClaraError(
                    f"the data ends before step {number} of {self.steps}; lower "
                    "optim.steps"
                ) from None
            # Asked for before the step, so that the answer does not wait for it.
            sums = self._add_up(count_tokens(batch), *self.interrupt.flags)
            self._pending.append(sums)
            yield number, batch, last
            flags = self.interrupt.flags if self._tally is None else sums()[1:]
            # Asked in any case, so that all processes know of a signal in the last one.
            if self.interrupt.agree(flags) or last:
                return

    def _add_up(self, *counts: int) -> Callable[[], Sequence[int]]:
        return (lambda: counts) if self._tally is None else self._tally(*counts)


def count_tokens(batch: Batch) -> int:
    """Count the real tokens of a batch on the host."""
    rows = (batch.prompt, batch.documents, batch.question, batch.candidates)
    return int(sum(np.sum(tokens.mask) for tokens in rows if tokens is not None))


def fit(
    state: TrainState,
    step_function: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    run: Run,
    hooks: Sequence[Hook],
    put: Callable[[Batch], Any] = jax.device_put,
) -> TrainState:
    """Train to the end of a run.

    Args:
      state: to start from; donated.
      step_function: a compiled step, with the frozen parts filled in.
      run: its feed is positioned where `state` stopped.
      hooks: called in this order after each step whose number they divide, and after
        the last.
      put: moves a batch to the devices; its result is what the step is given.

    Returns:
      The state after the last step done.

    Raises:
      NotFinite: with the last good state.
      ClaraError: the data ends early, or whatever a hook raises.
    """
    for number, batch, last in run.steps_after(int(state.step)):
        given = put(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = step_function(state, given)
        metrics = {**metrics, "step": number}
        for hook in hooks:
            if not hook.every or not (last or number % hook.every == 0):
                continue
            if hook.pauses:
                jax.block_until_ready(state.step)
            with run.pause() if hook.pauses else contextlib.nullcontext():
                hook(state, metrics)
    return state
