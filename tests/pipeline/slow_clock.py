"""``-m tests.pipeline.slow_clock ...``: the training command, by a clock of slow looks.

Each look takes a minute: what a deadline does goes by their number, not by real time.
"""

import runpy

from clara_jax.train.loop import Run

ticks: dict[int, float] = {}


def wall(run: Run) -> float:
    """Minutes, in seconds, since a run's first look."""
    ticks[id(run)] = ticks.get(id(run), 0.0) + 60.0
    return ticks[id(run)]


Run.wall = wall
runpy.run_module("clara_jax.train", run_name="__main__", alter_sys=True)
