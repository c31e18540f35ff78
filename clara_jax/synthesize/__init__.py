"""An invented encyclopedia, records for every stage, and the quickstart's report."""

from clara_jax.synthesize.base import BASE, write_base
from clara_jax.synthesize.files import Settings, prepare
from clara_jax.synthesize.report import report

__all__ = ["BASE", "Settings", "prepare", "report", "write_base"]
