"""``dies.py SIGNAL STEP mix ...``: the command, which a signal meets at a step."""

import os
import runpy
import sys
from importlib import import_module

from toy_mix import SMALL_STEPS

from clara_jax.data.work import Work

number, last = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
count, commit = 0, Work.commit


def counted(work: Work) -> None:
    """At odd steps before what was done is kept, at even ones after it."""
    global count
    count += 1
    if count == last and last % 2:
        os.kill(os.getpid(), number)
    commit(work)
    if count == last:
        os.kill(os.getpid(), number)


Work.commit = counted
for name, value in SMALL_STEPS.items():
    module, _, constant = name.partition(".")
    setattr(import_module(f"clara_jax.data.{module}"), constant, value)
runpy.run_module("clara_jax.data", run_name="__main__", alter_sys=True)
