"""The experiment's ``:smoke`` with three fifths of its steps.

They are enough: F1 is .76 from the vectors of gold documents and .22 from others', and
Recall@1 rises from .26 to .72 (one run).
"""

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
