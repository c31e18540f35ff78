"""The experiment's ``:smoke`` with three fifths of its steps, which are enough."""

from configs import smollm2_135m


def get_config():
    config = smollm2_135m.get_config("smoke")
    config.unlock()
    config.stages = tuple(map(_brief, config.stages))
    return config.lock()


def _brief(stage):
    return {
        **stage,
        "optim": {**stage["optim"], "steps": stage["optim"]["steps"] * 3 // 5},
    }
