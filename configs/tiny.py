"""Every stage on a random two-layer backbone and sixteen sentences: for tests.

Source: none; it learns nothing worth knowing.
Command: python -m clara_jax.train --config=configs/tiny.py:scp --config.workdir=DIR
    then ``configs/tiny.py:instruct`` with ``--config.init_from=`` the folder before,
    and so on. ``configs/tiny.py:all`` runs them all, one after the other.
Hardware: one CPU core. Time: about 20 s a stage, nearly all of it compilation.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import common

FILES = Path(__file__).resolve().parent.parent / "tests" / "train" / "tiny"
STAGES = ("scp", "instruct", "end_to_end")
RECORDS = {"lm": "documents", "scp": "documents"}
LATER = {"backbone": "", "tokenizer": ""}
"""Fields of a stage that goes on from the one before."""


def get_config(arg: str = "scp") -> ConfigDict:
    """Stage `arg`, or ``all``."""
    stage = STAGES[0] if arg == "all" else arg
    config = common.base(stage, f"runs/tiny_{arg}", "random:tiny")
    config.tokenizer = str(FILES / "tokenizer")
    config.memory.doc_max_length = 16
    config.memory.compression_rate = 8
    config.lora.rank = 4
    config.lora.alpha = 8.0
    config.selection.top_k = 2
    config.data.batch_size = 4
    config.data.prompt_max_length = 192
    config.optim.learning_rate = 5e-3
    config.optim.steps = 6
    config.hooks.log_every = 1
    config.hooks.checkpoint_every = 2
    config.hooks.max_new_tokens = 4
    config.hooks.tensorboard = False
    if arg == "all":
        config.stages = tuple(
            {"name": stage, "stage": stage, **_files(stage), **(LATER if i else {})}
            for i, stage in enumerate(STAGES)
        )
    else:
        config.update(_files(stage))
    return config


def _files(stage: str) -> dict:
    name = RECORDS.get(stage, "questions")
    held_out = (str(FILES / "held_out.jsonl"),) if name == "questions" else ()
    return {"data": {"train": (str(FILES / f"{name}.jsonl"),), "eval": held_out}}
