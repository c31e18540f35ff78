"""Training: one loop for every stage, exactly resumable.

`run` does it all from a `RunConfig`. The parts serve experiments of your own:
`make_train_step` and `fit` take any loss of the form in `clara_jax.clara`.
"""

from clara_jax.train.abstract import AbstractRun, abstract_batch, abstract_run
from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.corpus import CorpusFeed
from clara_jax.train.experiments import (
    Experiment,
    expand,
    load_config,
    read_experiment,
)
from clara_jax.train.folder import RunFolder
from clara_jax.train.hooks import (
    Checkpoint,
    Evaluate,
    Evaluator,
    Log,
    Profile,
    StopOnNonFinite,
)
from clara_jax.train.loop import Clock, Feed, Hook, Interrupt, NotFinite, Trail, fit
from clara_jax.train.optim import Schedule, make_optimizer, make_schedule
from clara_jax.train.parts import EvaluatorFactory, Parts
from clara_jax.train.runner import Interrupted, run
from clara_jax.train.start import Start, make_adapters, prepare
from clara_jax.train.state import TrainState, init_state
from clara_jax.train.step import compile_step, make_eval_step, make_train_step
from clara_jax.train.vectors import cached_vectors
from clara_jax.train.writers import JsonLines, Writer, read_lines

__all__ = [
    "AbstractRun",
    "Checkpoint",
    "Checkpoints",
    "Clock",
    "CorpusFeed",
    "Evaluate",
    "Evaluator",
    "EvaluatorFactory",
    "Experiment",
    "Feed",
    "Hook",
    "Interrupt",
    "Interrupted",
    "JsonLines",
    "Log",
    "NotFinite",
    "Parts",
    "Profile",
    "RunFolder",
    "Schedule",
    "Start",
    "StopOnNonFinite",
    "Trail",
    "TrainState",
    "Writer",
    "abstract_batch",
    "abstract_run",
    "cached_vectors",
    "compile_step",
    "expand",
    "fit",
    "init_state",
    "load_config",
    "make_adapters",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "prepare",
    "read_experiment",
    "read_lines",
    "run",
]
