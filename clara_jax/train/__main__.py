"""The command ``python -m clara_jax.train --config=FILE [--config.field=value]``."""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from clara_jax import commands, distributed
from clara_jax.config import RunConfig
from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.train.deadline import Budget
from clara_jax.train.experiments import Experiment, read_experiment
from clara_jax.train.runner import run


def parser() -> commands.Parser:
    """The command's arguments, but for those about the config."""
    parser = commands.Parser(
        usage="python -m clara_jax.train --config=FILE[:ARG] "
        "[--config.FIELD=VALUE ...]",
        description="FILE is an experiment, such as configs/quickstart.py; it says at "
        "its top what it does and what it needs. Fields are those of "
        "clara_jax.config.RunConfig, with dots between groups: "
        "--config.workdir=runs/mine --config.optim.steps=20. The same command started "
        "again goes on where it was; SIGTERM ends it with status 75.",
        epilog="On several hosts, start it on each: the cluster says which is which "
        "(TPU pods, SLURM, Open MPI), or the last three options do.",
    )
    # Named as the variables that they stand in for, and absent unless given.
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    address, count, index = distributed.EXPLICIT
    text = "of the process with number 0"
    add("--coordinator", dest=address, metavar="HOST:PORT", help=text)
    add("--processes", dest=count, metavar="N", help="how many there are")
    add("--process", dest=index, metavar="I", help="number of this one, from 0")
    return parser


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
        whole = None
        if budget.limited:
            # By the clock of the first process, for all.
            seconds = distributed.first(partial(budget.seconds, name))
            config = dataclasses.replace(config, minutes=max(seconds, 1.0) / 60)
            # What comes after the first stage is never refused: its results are there.
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
    """Make the data of a pipeline, and return the folder of its mix, if it has one."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program's name.

    Returns:
      The exit status; see `clara_jax.commands`.
    """
    options, others = parser().parse_known_args(arguments)

    def work() -> None:
        distributed.start({**os.environ, **vars(options)})
        run_experiment(read_experiment(others))

    try:
        status = commands.run(work)
    except Exception:
        distributed.leave(1)
        raise
    return distributed.leave(status) if status else 0


if __name__ == "__main__":
    commands.start(main)
