"""The command ``python -m clara_jax.train --config=FILE [--config.field=value]``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import jax

from clara_jax import distributed
from clara_jax.errors import ClaraError
from clara_jax.evaluate import CorpusRetrieval
from clara_jax.evaluate.evaluators import (
    CompressedAnswers,
    HeldOutLoss,
    SelectedAnswers,
    questions_of,
)
from clara_jax.files import first_line, told
from clara_jax.generate import AnswerConfig, Clara
from clara_jax.train.experiments import read_experiment
from clara_jax.train.hooks import Evaluator
from clara_jax.train.parts import Parts
from clara_jax.train.runner import Interrupted, run
from clara_jax.train.step import make_eval_step

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


def make_evaluators(parts: Parts) -> list[Evaluator]:
    """Choose what is measured on held-out data: the loss, and answers as decoded.

    The loss, and selection among candidates, need candidates that records bring. With a
    store, what is found in all of it is measured too, whatever training takes.

    Args:
      parts: of the run.

    Returns:
      Evaluators; none when the config names no held-out records.
    """
    config = parts.config
    if not len(parts.records):
        return []
    found: list[Evaluator] = []
    given = config.candidates == "given"
    if given:
        step = make_eval_step(parts.loss, parts.model)
        put = parts.evaluation.put
        found.append(
            HeldOutLoss(step, parts.backbone, parts.frozen, parts.batches, put)
        )
    questions = questions_of(parts.records)
    if config.stage == "lm" or not questions:
        return found
    clara = Clara(
        model=parts.model,
        backbone=parts.backbone,
        adapters=parts.frozen,
        tokenizer=parts.tokenizer,
        memory=config.memory,
        selection=config.selection,
        config=AnswerConfig(
            max_new_tokens=config.hooks.max_new_tokens,
            eos_ids=parts.eos_ids,
            batch_size=config.data.eval_batch_size or config.data.batch_size,
            prompt_max_length=config.data.prompt_max_length,
            question_max_length=config.data.question_max_length,
            too_long=config.data.too_long,
        ),
    )
    if config.stage in ("scp", "instruct"):
        found.append(CompressedAnswers(clara, questions))
        return found
    decode, top_k = config.stage == "end_to_end", config.selection.top_k
    if given:
        ks = tuple(sorted({1, top_k}))
        found.append(SelectedAnswers(clara, questions, ks=ks, decode=decode))
    if parts.store is not None:
        ks = (1, 5, top_k, max(1, config.data.candidates))
        found.append(
            CorpusRetrieval(clara, questions, parts.store, parts.search, ks, decode)
        )
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program's name.

    Returns:
      The exit status: 0 done, 1 bad input, 130 after Ctrl-C, 75 where the
      same command should be started again: after SIGTERM, or without another process.
    """
    if {"-h", "--help", "-help"} & set(arguments):
        print(USAGE, end="")
        return 0
    try:
        experiment = read_experiment(_joined(arguments))
        if experiment.synthesize is not None:
            from clara_jax import synthesize

            synthesize.prepare(experiment.workdir, experiment.synthesize)
        for config in experiment.runs:
            run(config, make_evaluators)
        if experiment.synthesize is not None:
            synthesize.report(experiment.workdir, experiment.synthesize)
    except (ClaraError, OSError) as error:
        print(told(error), file=sys.stderr)
        return distributed.leave(1, told(error))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        message, status = distributed.cause(error)
        print(message, file=sys.stderr)
        return distributed.leave(status, message)
    except Interrupted as stopped:
        if distributed.is_first():
            print(stopped, file=sys.stderr)
        status = distributed.TRY_AGAIN if stopped.signal == "SIGTERM" else 130
        return distributed.leave(status)
    except Exception as error:
        if jax.process_count() > 1:
            # Otherwise the others would wait for this process, and it for them.
            traceback.print_exc()
            reason = f"an error of the program: {first_line(error)}"
            return distributed.leave(1, reason)
        raise
    return distributed.leave(0)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
