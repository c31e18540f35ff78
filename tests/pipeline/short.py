"""The experiment's ``:smoke`` with a handful of steps: for tests that kill it."""

from configs import smollm2_135m


def get_config(arg: str = "12"):
    """As many steps in every stage as `arg` says."""
    config = smollm2_135m.get_config("smoke")
    config.unlock()
    config.report.update({"questions": 16, "batch_size": 8, "corpus": 200})
    config.hooks.checkpoint_every = 3
    config.hooks.eval_limit = 8
    config.hooks.log_every = 1
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.stages = tuple(_short(stage, int(arg)) for stage in config.stages)
    return config.lock()


def _short(stage, steps):
    data = {k: v for k, v in stage["data"].items() if k != "batch_size"}
    return {**stage, "data": data, "optim": {**stage["optim"], "steps": steps}}
