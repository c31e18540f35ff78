"""What document vectors depend on, as one short name.

A store of vectors carries it, so that a model finds out whether it made them.
"""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara.network import Network
from clara_jax.config import to_dict
from clara_jax.distributed import to_host
from clara_jax.shapes import Array, Shaped

SAMPLE = 4096
"""Numbers that are looked at in an array of the backbone."""

_RUN_TIME = ("dtype", "param_dtype", "remat")
"""Settings of a backbone that are no part of what it is."""

_TURN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: its multiples are spread evenly, and along no axis."""


def vector_fingerprint(network: Network) -> str:
    """Return a digest of all that document vectors depend on, 32 hexadecimal digits.

    The compressor, memory rows and marks go in whole. Of every backbone array go in at
    most `SAMPLE` numbers, rounded to bfloat16, which tells models apart without reading
    gigabytes; a float32 copy of a backbone and its bfloat16 copy are one and the same.
    A quantized backbone is another one, since its numbers are. Neither the compute type
    nor the mesh matters, nor do reasoner and generator.
    """
    model, backbone, adapters = network.model, network.backbone, network.adapters
    settings: dict[str, Any] = {
        "shape": backbone_shape(network),
        "text_vocab": model.text_vocab,
        "num_memory": network.num_memory,
    }
    if model.lora is not None:
        settings["scale"] = model.lora.alpha / model.lora.rank
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    whole = {
        "compressor": adapters["compressor"],
        "memory": adapters["memory"],
        "marks": backbone["rows"]["marks"],
    }
    for name, leaf in named_leaves(whole):
        _add(digest, name, leaf.shape, to_host(leaf).astype(np.float32))
    for name, leaf in named_leaves(adapters.get("backbone", backbone["params"])):
        _add(digest, name, leaf.shape, _sample(leaf))
    return digest.hexdigest()


def backbone_shape(network: Network) -> dict[str, Any]:
    """Return the backbone's settings, without those that only say how it is run."""
    shape = to_dict(network.model.config)
    return {k: v for k, v in shape.items() if k not in _RUN_TIME}


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a tree with their names, keys joined by slashes."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _add(digest: Any, name: str, shape: tuple[int, ...], numbers: np.ndarray) -> None:
    digest.update(f"{name} {shape}\n".encode())
    # A sum over the parts of a mesh may turn a minus zero into a zero.
    digest.update(np.ascontiguousarray(numbers + np.zeros((), numbers.dtype)).tobytes())


def _sample(leaf: Any) -> np.ndarray:
    """Return numbers of an array at places that depend on its shape alone."""
    places = np.unravel_index(_places(leaf.size), leaf.shape)
    if isinstance(leaf, np.ndarray):
        found = leaf[places]
    else:
        found = to_host(_take(leaf, tuple(map(jnp.asarray, places))))
    is_float = jnp.issubdtype(found.dtype, jnp.floating)
    return found.astype(jnp.bfloat16) if is_float else found


@functools.cache
def _places(size: int) -> np.ndarray:
    """Return at most `SAMPLE` places below `size`, spread by the golden ratio."""
    if size <= SAMPLE:
        return np.arange(size)
    turns = ((i * _TURN) % 2**64 for i in range(1, SAMPLE + 1))
    return np.asarray([(turn * size) >> 64 for turn in turns])


@jax.jit
def _take(leaf: Shaped[Array, "..."], places: tuple[Any, ...]) -> Any:
    return leaf[places]
