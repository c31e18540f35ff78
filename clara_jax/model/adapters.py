"""Adapter trees: shapes, fresh ones, counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.config import LoraConfig
from clara_jax.errors import ClaraError
from clara_jax.model.quantized import dequantize_params
from clara_jax.model.transformer import Transformer
from clara_jax.shapes import Key, Params

_init = jax.jit(Transformer.init, static_argnums=0)


def abstract_variables(model: Transformer) -> Params:
    """Return shapes and types of all the model's variables, without making any."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return _init.eval_shape(model, jax.random.key(0), ids)


def init_lora(
    model: Transformer, key: Key, placement: Callable[[Any], Any] | None = None
) -> Params:
    """Return a fresh adapter, which changes nothing yet, in float32.

    ``a`` is uniform within ``1 / sqrt(inputs)`` (Kaiming's rule with a = sqrt(5), as
    PEFT starts it), ``b`` zero. Arrays are made where `placement` puts them, which maps
    a tree of shapes to shardings.

    Raises:
      ClaraError: no layer of this backbone carries an adapter.
    """
    shapes = abstract_variables(model).get("lora")
    if not shapes:
        raise ClaraError(
            "config field 'lora.layers' names no layer that this backbone has; "
            "use ('all',)"
        )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)

    def make(key: Key) -> Params:
        keys = jax.random.split(key, len(leaves))
        fresh = []
        for (path, leaf), leaf_key in zip(leaves, keys, strict=True):
            shape, bound = (leaf.shape, leaf.dtype), leaf.shape[-2] ** -0.5
            if path[-1].key == "b":
                fresh.append(jnp.zeros(*shape))
            else:
                fresh.append(jax.random.uniform(leaf_key, *shape, -bound, bound))
        return jax.tree_util.tree_unflatten(treedef, fresh)

    if placement is None:
        return make(key)
    return jax.jit(make, out_shardings=placement(shapes))(key)


def merge_lora(settings: LoraConfig | None, params: Params, lora: Params) -> Params:
    """Return weights with an adapter in them, ``W + alpha / R (a b)`` in float32.

    One matrix product per layer is then left of three, at the price of a second copy of
    the matrices; arrays without an adapter are shared. Types stay, but quantized
    kernels are widened to that of the embedding table: an adapter's update is finer
    than their steps.
    """
    scale = settings.alpha / settings.rank if settings is not None else 1.0
    stored = params["embed"]["embedding"].dtype

    def merge(weights: Params, update: Params, name: str = "") -> Params:
        if "a" in update:
            dtype = weights["kernel"].dtype if "kernel" in weights else stored
            weights = dequantize_params(weights, jnp.float32, name)
            wide = weights["kernel"].astype(jnp.float32)
            product = update["a"].astype(jnp.float32) @ update["b"].astype(jnp.float32)
            kernel = (wide + scale * product).astype(dtype)
            return {**weights, "kernel": kernel}
        return {**weights, **{k: merge(weights[k], v, k) for k, v in update.items()}}

    return merge(params, lora)


def init_backbone(
    model: Transformer, key: Key, placement: Callable[[Any], Any] | None = None
) -> Params:
    """Return random frozen weights, made where `placement` puts them."""

    def make(key: Key) -> Params:
        return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    places = None if placement is None else placement(jax.eval_shape(make, key))
    return jax.jit(make, out_shardings=places)(key)


def count(tree: Params) -> tuple[int, int]:
    """Return how many numbers and bytes a tree of arrays or their shapes has."""
    leaves = jax.tree.leaves(tree)
    return sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)
