"""Checksums that do not depend on where an array lies, and what to do with them.

A checksum is ``sum(bits[i] * (2 i + 1)) mod 2**32`` over an array's numbers as unsigned
integers. Integers add up to the same in any order, so every mesh finds the same; and as
no odd number divides a power of two, no single changed number goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.config import to_dict
from clara_jax.distributed import to_host
from clara_jax.errors import ClaraError
from clara_jax.model import Transformer
from clara_jax.shapes import Array, Shaped

_RUN_TIME = ("dtype", "param_dtype", "remat")
"""Settings of a model that are no part of what it is."""


def checksums(tree: Any) -> dict[str, int]:
    """Checksum of every array of a tree, by its name.

    Args:
      tree: arrays, on any mesh; computed where they are.

    Returns:
      Name, such as ``compressor/layers/mlp/up/a``, to checksum.
    """
    leaves = named_leaves(tree)
    sums = to_host(_sums([leaf for _, leaf in leaves]))
    return {name: int(s) for (name, _), s in zip(leaves, sums, strict=True)}


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Arrays of a tree and their names, keys joined by slashes."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


@jax.jit
def _sums(leaves: list[Any]) -> Shaped[Array, " n"]:
    return jnp.stack([jnp.zeros((), jnp.uint32), *map(_sum, leaves)])[1:]


def _sum(x: Shaped[Array, "..."]) -> Shaped[Array, ""]:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        bits = x.astype(jnp.uint32)
    else:
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        step = jnp.uint32(stride % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
        stride *= x.shape[axis]
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def fingerprint(model: Transformer, backbone: Any, frozen: Any) -> dict[str, Any]:
    """What a run trains on and does not change, as JSON values.

    Args:
      model: the transformer.
      backbone: frozen weights and rows.
      frozen: adapters that are not trained.

    Returns:
      The backbone's shape and the checksum of every frozen array.
    """
    shape = {k: v for k, v in to_dict(model.config).items() if k not in _RUN_TIME}
    return {
        "shape": shape,
        "weights": checksums({"backbone": backbone, **dict(frozen)}),
    }


def refuse_other(where: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that belongs to other frozen weights.

    Args:
      where: the checkpoint, for the message.
      saved, now: fingerprints.

    Raises:
      ClaraError: they differ; names what does.
    """
    for name in now["shape"]:
        before, here = saved["shape"].get(name), now["shape"][name]
        # Lists of JSON are the tuples of a config.
        if _plain(before) != _plain(here):
            raise ClaraError(
                f"{where}: was trained on a backbone whose {name} is {before}, but "
                f"this one has {here}; give the backbone that it was trained on"
            )
    before, here = saved["weights"], now["weights"]
    changed = [n for n in {**before, **here} if before.get(n) != here.get(n)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ClaraError(
            f"{where}: was trained on other frozen weights of the same shape: "
            f"{changed[0]}{more} of {len(here)} arrays differ; give the weights that "
            "it was trained on, or another --config.workdir"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
