"""Training: one loop for every stage, exactly resumable.

`run` does it all from a `RunConfig`. The parts serve experiments of your own:
`make_train_step` and `fit` take any loss of the form in `clara_jax.clara`.
"""

from clara_jax.train.abstract import AbstractRun, abstract_batch, abstract_run
from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.corpus_feed import CorpusFeed
from clara_jax.train.experiments import (
    Experiment,
    expand,
    load_config,
    read_experiment,
)
from clara_jax.train.hooks import (
    Checkpoint,
    Evaluate,
    Evaluator,
    JsonLines,
    Log,
    Profile,
    StopOnNonFinite,
    Writer,
    read_lines,
)
from clara_jax.train.loop import Feed, Hook, NotFinite, Run, fit
from clara_jax.train.parts import Parts
from clara_jax.train.run_folder import RunFolder
from clara_jax.train.runner import run
from clara_jax.train.state import (
    Schedule,
    TrainState,
    init_state,
    make_optimizer,
    make_schedule,
)
from clara_jax.train.step import compile_step, make_eval_step, make_train_step
from clara_jax.train.vectors import cached_vectors
from clara_jax.train.weights import Start, load_start, make_adapters

__all__ = [
    "AbstractRun",
    "Checkpoint",
    "Checkpoints",
    "CorpusFeed",
    "Evaluate",
    "Evaluator",
    "Experiment",
    "Feed",
    "Hook",
    "JsonLines",
    "Log",
    "NotFinite",
    "Parts",
    "Profile",
    "Run",
    "RunFolder",
    "Schedule",
    "Start",
    "StopOnNonFinite",
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
    "load_start",
    "make_adapters",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "read_experiment",
    "read_lines",
    "run",
]
