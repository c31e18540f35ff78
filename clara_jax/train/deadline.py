"""Training against the clock: the pace of a run, and the time of a pipeline's parts."""

import collections
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clara_jax.distributed import gather
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json


class Deadline:
    """The pace of a run that must end in time.

    A run is as far as its steps or its time are, whichever are closer to their end.
    Time counts from the end of the first step, which is mostly compilation, to the
    deadline. All processes go by the clock of the first.

    Args:
      steps: most optimizer steps.
      seconds: of ``Run.wall``, in which the run is to end.
      whole: of a pipeline, of which `seconds` are a share: a first step that takes
        longer than that is refused, since nothing would be left for what follows. None:
        the run stands alone.

    Attributes:
      progress: share of the run that is over when the step at hand ends, in (0, 1].
    """

    def __init__(self, steps: int, seconds: float, whole: float | None = None):
        self._steps, self._seconds = steps, seconds
        self._whole = seconds if whole is None else whole
        self._begin: float | None = None
        self._before: float | None = None
        self._took: collections.deque[float] = collections.deque(maxlen=5)
        self.progress = 1 / steps

    def begin(self, step: int, wall: float) -> bool:
        """Return whether `step` (1, 2, ...), begun now, is the last with time for it.

        `wall` is the seconds that the run has taken.

        Raises:
          ClaraError: the time of the whole is over after the run's first step.
        """
        now = float(gather(np.array(wall))[0])
        if self._before is None:
            # A run that goes on has had its compilation; this one is lost time.
            self._begin = None if step == 1 else 0.0
        elif self._begin is None:
            self._begin = now
            if now >= self._whole:
                enough = math.ceil(2 * now * self._whole / self._seconds / 60)
                raise ClaraError(
                    f"config field 'minutes': {self._whole:.0f} s were left, and "
                    f"compiling and taking the first step took {now:.0f} s; give at "
                    f"least {enough}"
                )
        else:
            self._took.append(now - self._before)
        self._before = now
        took = statistics.median(self._took) if self._took else 0.0
        done = step / self._steps
        if self._begin is not None:
            whole = max(self._seconds - self._begin, 1e-9)
            done = max(done, (now + took - self._begin) / whole)
        self.progress = min(done, 1.0)
        return self._begin is not None and now + 2 * took >= self._seconds


class Budget:
    """The time of a pipeline, shared out over its parts.

    Each part may take its share of the time that is left, so that what one leaves or
    overdraws falls to those after it. What parts took is kept in the pipeline's folder,
    and a command that goes on knows it.

    Args:
      workdir: the pipeline's folder.
      minutes: of the whole; 0 for no end.
      shares: part to its share, in their order; parts without one take what they take.

    Attributes:
      taken: part to the seconds that it took, of those that are done.
    """

    def __init__(
        self, workdir: str | Path, minutes: float, shares: Mapping[str, float]
    ):
        self._path = Path(workdir) / "time.json"
        self._minutes, self.shares = minutes, dict(shares)
        self.taken: dict[str, float] = {}
        if self._path.exists():
            self.taken = read_json(self._path)
            if not all(isinstance(x, float | int) for x in self.taken.values()):
                raise ClaraError(f"{self._path}: is damaged; delete it")

    @property
    def limited(self) -> bool:
        """Whether there is an end at all."""
        return self._minutes > 0

    def left(self) -> float:
        """Return seconds to the end, by the parts done; negative when it is over."""
        return 60 * self._minutes - sum(self.taken.values())

    def seconds(self, name: str) -> float:
        """Return what part `name` may take now, in seconds; 0 or less: nothing."""
        waiting = [n for n in self.shares if n not in self.taken or n == name]
        whole = sum(self.shares[n] for n in waiting)
        return self.left() * self.shares[name] / whole

    def note(self, name: str, seconds: float) -> None:
        """Keep what part `name` has taken, now that it is done; the first time counts.

        What a killed command did not keep is not known, and not in it.
        """
        if name not in self.taken:
            self.taken[name] = seconds
            write_json(self._path, self.taken)
