"""A whole experiment around its runs: data mixed before, a report at the end.

`clara_jax.train` trains one run after the other; this room knows what comes before them
and after, for experiments whose config has the groups ``mix`` and ``report``.
"""

from clara_jax.pipeline.before import MixSettings, ReportSettings, export, prepare
from clara_jax.pipeline.report import check, report

__all__ = ["MixSettings", "ReportSettings", "check", "export", "prepare", "report"]
