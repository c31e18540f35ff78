"""Two sides timed in turn, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    what: str,
    unit: str,
    per_call: float,
    names: tuple[str, str] = ("ours", "theirs"),
) -> float:
    """Time both sides in turn and print medians and their ratio.

    Args:
      ours, theirs: do the work and wait for its end. The first call of each, with its
        compilation, is printed apart.
      rounds: timed calls of each side.
      what: heading.
      unit: of the work, such as ``documents``.
      per_call: units in one call.
      names: of the sides.

    Returns:
      How many times as much work our side does in the same time.
    """
    sides = {names[0]: ours, names[1]: theirs}
    first = {name: _seconds(run) for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(_seconds(run))
    print(f"\n{what}")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f} s"
        print(
            f"  {name:<32} {per_call / median:10.2f} {unit}/s   median {median:.3f} s "
            f"({spread}; first call {first[name]:.1f} s)"
        )
    ratio = medians[names[1]] / medians[names[0]]
    print(f"  ratio {ratio:.2f}x, median of {rounds} rounds each")
    return ratio


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
