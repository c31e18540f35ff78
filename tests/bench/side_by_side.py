"""Two sides timed in turn, so that whatever else the machine does meets both alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def compare(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    what: str,
    unit: str,
    per_call: float,
) -> None:
    """Time all sides in turn; print medians, and the ratio of each to the last side.

    Args:
      sides: name to what does the work and waits for its end. The first call of each,
        with its compilation, is printed apart.
      rounds: timed calls of each side.
      what: heading.
      unit: of the work, such as ``documents``.
      per_call: units in one call.
    """
    first = {name: _seconds(run) for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(_seconds(run))
    print(f"\n{what}; medians of {rounds} rounds")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    last = medians[list(sides)[-1]]
    width = max(map(len, sides))
    for name, median in medians.items():
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f} s"
        print(
            f"  {name:<{width}} {per_call / median:9.2f} {unit}/s {last / median:6.2f}x"
            f"   median {median:.3f} s ({spread}; first call {first[name]:.1f} s)"
        )


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
