"""Several processes as one program: their start, what they tell each other, their end.

Every process runs the same command and holds its own devices; arrays span all of them.
Process 0 writes files and talks to the user.
"""

from clara_jax.distributed.exchange import first, from_host, gather, is_first, to_host
from clara_jax.distributed.start import EXPLICIT, cause, leave, start
from clara_jax.distributed.watch import TRY_AGAIN

__all__ = [
    "EXPLICIT",
    "TRY_AGAIN",
    "cause",
    "first",
    "from_host",
    "gather",
    "is_first",
    "leave",
    "start",
    "to_host",
]
