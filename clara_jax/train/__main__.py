"""The command ``python -m clara_jax.train --config=FILE [--config.field=value]``."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clara_jax import distributed
from clara_jax.commands import TRY_AGAIN, Interrupted
from clara_jax.config import RunConfig
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, told
from clara_jax.train.deadline import Budget
from clara_jax.train.experiments import Experiment, read_experiment
from clara_jax.train.runner import run

_FLAGS = dict(
    zip(
        ("--coordinator", "--processes", "--process"), distributed.EXPLICIT, strict=True
    )
)

USAGE = """\
usage: python -m clara_jax.train --config=FILE[:ARG] [--config.FIELD=VALUE ...]

FILE is an experiment, such as configs/quickstart.py; it says at its top what it does
and what it needs. Fields are those of clara_jax.config.RunConfig, with dots between
groups: --config.workdir=runs/mine --config.optim.steps=20
The same command started again goes on where it was; SIGTERM ends it with status 75. On
several hosts, start it on each: the cluster says which is which (TPU pods, SLURM, Open
MPI), or --coordinator=HOST:PORT --processes=N --process=I.
"""


def run_experiment(experiment: Experiment) -> None:
    """Make the data, train one run after the other, and report.

    Args:
      experiment: as `read_experiment` gives it. What an earlier command did is not done
        again.

    Raises:
      ClaraError: bad input.
      Interrupted: SIGINT or SIGTERM; the same command goes on.
    """
    # Not needed by a single run, and not light.
    from clara_jax import pipeline, quickstart

    workdir, runs = experiment.workdir, experiment.runs
    budget = Budget(workdir, experiment.minutes, experiment.shares)
    folder = _prepare(experiment, budget)
    for number, config in enumerate(runs):
        name = Path(config.workdir).name
        if budget.limited:
            # By the clock of the first process, for all.
            seconds = distributed.first(partial(budget.seconds, name))
            minutes = max(seconds, 1.0) / 60
            config = dataclasses.replace(config, minutes=minutes)
        # What comes after the first stage is never refused: its results are there.
        whole = None
        if budget.limited:
            whole = math.inf if number else distributed.first(budget.left)
        run(config, whole=whole)
        if budget.limited:
            distributed.first(partial(_note, budget, config))
        if experiment.report is not None:
            pipeline.export(workdir, config, experiment.report, folder)
    if experiment.report is not None:
        seconds = budget.seconds("report") if budget.limited else None
        pipeline.report(workdir, experiment.report, runs, Path(folder), seconds)
    elif experiment.quickstart is not None:
        quickstart.report(workdir, experiment.quickstart)


def _prepare(experiment: Experiment, budget: Budget) -> str:
    """Make the data of a pipeline; returns the folder of its mix, if it has one."""
    from clara_jax import pipeline, quickstart

    begin = time.perf_counter()
    folder = ""
    if experiment.report is not None:
        pipeline.check(experiment)
    if experiment.quickstart is not None:
        quickstart.prepare(experiment.workdir, experiment.quickstart)
    if experiment.mix is not None:
        folder = str(experiment.mix.get("folder", ""))
        distributed.first(partial(pipeline.prepare, experiment.mix, experiment.runs[0]))
    if budget.limited:
        seconds = time.perf_counter() - begin
        distributed.first(partial(_note_data, budget, seconds, experiment.minutes))
    return folder


def _note_data(budget: Budget, seconds: float, minutes: float) -> None:
    if budget.left() <= seconds and not budget.taken:
        raise ClaraError(
            f"config field 'minutes': making the data alone took {seconds:.0f} s of "
            f"{60 * minutes:.0f}; give more, the data are there now"
        )
    budget.note("data", seconds)


def _note(budget: Budget, config: RunConfig) -> None:
    summary = read_json(Path(config.workdir) / "summary.json")
    budget.note(Path(config.workdir).name, summary["wall_seconds"])


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program's name.

    Returns:
      The exit status: 0 done, 1 bad input, 130 after Ctrl-C, 75 after SIGTERM: start
      the same command again.
    """
    if {"-h", "--help", "-help"} & set(arguments):
        print(USAGE, end="")
        return 0
    try:
        run_experiment(read_experiment(_joined(arguments)))
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return distributed.leave(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return distributed.leave(130)
    except Interrupted as stopped:
        if distributed.is_first():
            print(stopped, file=sys.stderr)
        return TRY_AGAIN if stopped.signal == "SIGTERM" else 130
    except Exception:
        distributed.leave(1)
        raise
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join the other processes, if there are any, and return the other arguments."""
    rest, environment = [], dict(os.environ)
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag in _FLAGS:
            environment[_FLAGS[flag]] = value
        else:
            rest.append(argument)
    distributed.start(environment)
    return rest


def _stop(number: int, _: Any) -> None:
    """End at once: outside of the steps all that was done is on disk."""
    os.write(2, b"\nSIGTERM: start the same command again to go on\n")
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    # Runs and reports have a way of their own, for as long as they last.
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv[1:]))
