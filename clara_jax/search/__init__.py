"""Document vectors of a whole corpus on disk, and the search among them.

The searchers live in their own modules; import those.
"""

from clara_jax.search.check import check
from clara_jax.search.codecs import CODECS, decode, encode
from clara_jax.search.edit import compact, delete
from clara_jax.search.manifest import Manifest, StoreSettings
from clara_jax.search.store import Piece, Store, Tile
from clara_jax.search.writer import Job, ShardInfo, write_shard, write_store

__all__ = [
    "CODECS",
    "Job",
    "Manifest",
    "Piece",
    "ShardInfo",
    "Store",
    "StoreSettings",
    "Tile",
    "check",
    "compact",
    "decode",
    "delete",
    "encode",
    "write_shard",
    "write_store",
]
