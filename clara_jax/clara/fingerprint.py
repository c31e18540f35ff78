"""What document vectors depend on, as one short name; and base models known again.

A store of vectors carries the name, so that a model finds out whether it made them.
Adapters carry a sample of the frozen weights that they were trained on. Numbers, unlike
a name, tell another model from the same one in 4 bits.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara.network import Network
from clara_jax.config import to_dict
from clara_jax.distributed import to_host
from clara_jax.shapes import Array, Params, Shaped

SAMPLE = 4096
"""Numbers that are looked at in an array of the backbone."""

KEPT = 64
"""Numbers of an array that `weights_sample` keeps."""

_ROUNDING = 2.0**-7
"""Relative difference of neighbours in bfloat16, and more than float16's."""

_RUN_TIME = ("dtype", "param_dtype", "remat")
"""Settings of a backbone that are no part of what it is."""

_TABLES = {"embed/embedding": 0, "head/kernel": 1}
"""Arrays with a row for every token, and which axis these are on."""

_LATER = (
    *("unrotated_layers", "window_rope", "activation", "centered_norms"),
    *("output_norms", "scaled_embeddings", "score_dim"),
)
"""Settings that are younger than stores: they count in backbones that use them."""

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


def weights_sample(params: Params, text_vocab: int) -> dict[str, str]:
    """Return `KEPT` numbers of every frozen array, by its name, as JSON keeps them.

    They are rounded to bfloat16, and written in base64. Tables count with their text
    rows only, since files of one model differ in those that pad the vocabulary.
    """
    found = {}
    for name, leaf in named_leaves(params):
        shape = list(leaf.shape)
        if name in _TABLES:
            axis = _TABLES[name]
            shape[axis] = max(0, min(text_vocab, shape[axis]))
        numbers = _sample(leaf, KEPT, tuple(shape)).astype(jnp.bfloat16)
        found[name] = base64.b64encode(numbers.tobytes()).decode()
    return found


def weights_distance(before: Mapping[str, str], now: Mapping[str, str]) -> float:
    """Return how far weights are from others of the same shape, by two samples.

    Returns:
      The norm of the difference over that of the weights before, of the array where
      this is largest: 0 if there are no differences but by rounding, below 0.2 for the
      same weights in 4 bits, more than 1 for another model.

    Raises:
      ValueError: a sample is damaged.
    """
    if before.keys() != now.keys():
        return math.inf
    return max((_distance(before[name], now[name]) for name in before), default=0.0)


def _distance(before: str, now: str) -> float:
    a, b = (
        np.frombuffer(base64.b64decode(text, validate=True), jnp.bfloat16)
        for text in (before, now)
    )
    if a.shape != b.shape:
        return math.inf
    a, b = a.astype(np.float32), b.astype(np.float32)
    if np.allclose(a, b, rtol=_ROUNDING, atol=1e-7):
        return 0.0
    length = float(np.linalg.norm(a))
    return float(np.linalg.norm(a - b)) / length if length else math.inf


def backbone_shape(network: Network) -> dict[str, Any]:
    """Return the backbone's settings, without those that only say how it is run."""
    shape = to_dict(network.model.config)
    usual = {f.name: f.default for f in dataclasses.fields(network.model.config)}
    unused = [name for name in _LATER if shape[name] == usual[name]]
    return {k: v for k, v in shape.items() if k not in (*_RUN_TIME, *unused)}


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


def _sample(
    leaf: Any, count: int = SAMPLE, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Return numbers of an array at places that depend on its `shape` alone.

    A smaller `shape` than its own takes them from the beginning of its axes.
    """
    inside: tuple[int, ...] = leaf.shape if shape is None else shape
    places = np.unravel_index(_places(math.prod(inside), count), inside)
    if isinstance(leaf, np.ndarray):
        found = leaf[places]
    else:
        found = to_host(_take(leaf, tuple(map(jnp.asarray, places))))
    is_float = jnp.issubdtype(found.dtype, jnp.floating)
    return found.astype(jnp.bfloat16) if is_float else found


@functools.cache
def _places(size: int, count: int) -> np.ndarray:
    """Return at most `count` places below `size`, spread by the golden ratio."""
    if size <= count:
        return np.arange(size)
    turns = ((i * _TURN) % 2**64 for i in range(1, count + 1))
    return np.asarray([(turn * size) >> 64 for turn in turns])


@jax.jit
def _take(leaf: Shaped[Array, "..."], places: tuple[Any, ...]) -> Any:
    return leaf[places]
