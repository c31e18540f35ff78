"""Document vectors of a whole corpus, and the search among them.

Searchers are imported from their own modules: `exact`, `scann_index` and `hybrid`.
"""

from clara_jax.search.codecs import CODECS
from clara_jax.search.maintenance import check, compact, delete, versions
from clara_jax.search.rows import StoreSettings
from clara_jax.search.store import Store
from clara_jax.search.writer import Job

__all__ = [
    "CODECS",
    "Job",
    "Store",
    "StoreSettings",
    "check",
    "compact",
    "delete",
    "versions",
]
