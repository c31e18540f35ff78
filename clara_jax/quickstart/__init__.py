"""The quickstart's invented encyclopedia, its tiny base model, and its report."""

from clara_jax.quickstart.outputs import BASE, Settings, prepare, report

__all__ = ["BASE", "Settings", "prepare", "report"]
