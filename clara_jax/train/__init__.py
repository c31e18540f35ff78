"""Training: one loop for every stage, exactly resumable.

`run` does it all from a `RunConfig`. The parts serve experiments of your own:
`make_train_step` and `fit` take any loss of the form in `clara_jax.clara`.
"""

from clara_jax.train.checkpoints import Checkpoints
from clara_jax.train.experiments import Experiment, expand, load_config, read_experiment
from clara_jax.train.hooks import (
    Checkpoint,
    Evaluate,
    JsonLines,
    Log,
    Profile,
    StopOnNonFinite,
    Writer,
    read_lines,
)
from clara_jax.train.loop import Feed, Hook, NotFinite, Run, fit
from clara_jax.train.runner import run
from clara_jax.train.state import TrainState, init_state, make_optimizer, make_schedule
from clara_jax.train.step import compile_on_mesh, make_eval_step, make_train_step

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Evaluate",
    "Experiment",
    "Feed",
    "Hook",
    "JsonLines",
    "Log",
    "NotFinite",
    "Profile",
    "Run",
    "StopOnNonFinite",
    "TrainState",
    "Writer",
    "compile_on_mesh",
    "expand",
    "fit",
    "init_state",
    "load_config",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "read_experiment",
    "read_lines",
    "run",
]
