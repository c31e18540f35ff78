"""The quickstart's invented encyclopedia, its tiny base model, and its report."""

from clara_jax.quickstart.outputs import Settings, prepare, report
from clara_jax.quickstart.toy_base import BASE, write_base

__all__ = ["BASE", "Settings", "prepare", "report", "write_base"]
