"""Several processes as one program: their start, what they exchange, their end.

Every process runs the same command and holds its own devices; arrays span all of them.
Process 0 writes files and talks to the user.
"""

from clara_jax.distributed.exchange import (
    first,
    from_host,
    gather,
    is_first,
    report,
    to_host,
)
from clara_jax.distributed.processes import EXPLICIT, leave, start

__all__ = [
    "EXPLICIT",
    "first",
    "from_host",
    "gather",
    "is_first",
    "leave",
    "report",
    "start",
    "to_host",
]
