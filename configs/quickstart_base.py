"""The quickstart's base: a language model of 156 thousand weights, from scratch.

It reads conversations about one document in full: questions with answers, all questions
at once, paraphrases, in the form of the stages' prompts. Held-out names are in none.
The result is ``runs/quickstart_base/base``, a Hugging Face folder; the one that comes
with the package is ``clara_jax/quickstart/base``.

Source: ours.
Command: python -m clara_jax.train --config=configs/quickstart_base.py
Hardware: two CPU cores. Time: about four minutes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """One language-model run."""
    config = common.base("lm", "runs/quickstart_base", "{workdir}/data/start")
    config.unlock()
    config.quickstart = ConfigDict(
        {"records": "pretraining", "seed": 0, "pretraining": 20000, "held_out": 200}
    )
    config.stages = ({"name": "lm"},)
    config.data.train = ("{workdir}/data/pretraining.jsonl",)
    config.data.batch_size = 32
    config.data.prompt_max_length = 112
    config.optim.learning_rate = 4e-3
    config.optim.b2 = 0.98
    config.optim.warmup_fraction = 0.05
    config.optim.final_fraction = 0.05
    config.optim.weight_decay = 0.01
    config.optim.steps = 600
    config.hooks.log_every = 20
    config.hooks.checkpoint_every = 100
    config.hooks.tensorboard = False
    return config.lock()
