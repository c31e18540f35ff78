"""An invented encyclopedia, records for every stage, and the quickstart's report."""

from clara_jax.synthesize.files import Settings, prepare
from clara_jax.synthesize.report import report
from clara_jax.synthesize.shipped import BASE, write_base

__all__ = ["BASE", "Settings", "prepare", "report", "write_base"]
