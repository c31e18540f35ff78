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


def abstract_variables(model: Transformer) -> Params:
    """Shapes and types of all the model's variables, without making any."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), ids)


def init_lora(
    model: Transformer, key: Key, placement: Callable[[Any], Any] | None = None
) -> Params:
    """A fresh adapter, which changes nothing yet.

    Args:
      model: a transformer with ``lora`` settings.
      key: for the ``a`` matrices.
      placement: a tree of shapes to the same tree of shardings; arrays are then made
        where they lie.

    Returns:
      The ``lora`` collection in float32: ``a`` uniform within ``1 / sqrt(inputs)``
      (Kaiming's rule with a = sqrt(5), as PEFT starts it), ``b`` zero.

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
            if path[-1].key == "b":
                fresh.append(jnp.zeros(leaf.shape, leaf.dtype))
            else:
                bound = leaf.shape[-2] ** -0.5
                fresh.append(
                    jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, -bound, bound)
                )
        return jax.tree_util.tree_unflatten(treedef, fresh)

    if placement is None:
        return make(key)
    return jax.jit(make, out_shardings=placement(shapes))(key)


def merge_lora(settings: LoraConfig | None, params: Params, lora: Params) -> Params:
    """Weights with an adapter in them: ``W + alpha / R (a b)``, summed in float32.

    One matrix product per layer is then left of three, at the price of a second copy of
    the matrices.

    Args:
      settings: of the adapter.
      params: the backbone's weights.
      lora: one role's adapter.

    Returns:
      New weights in the types of the old ones; arrays without an adapter are shared.
      Quantized kernels are widened to the type of the embedding table: an adapter's
      update is finer than their steps.
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
    """Random frozen weights of the model's shape, made where `placement` puts them."""
    ids = jnp.zeros((1, 1), jnp.int32)

    def make(key: Key) -> Params:
        return model.init(key, ids)["params"]

    if placement is None:
        return jax.jit(make)(key)
    shapes = jax.eval_shape(make, key)
    return jax.jit(make, out_shardings=placement(shapes))(key)


def count(tree: Params) -> tuple[int, int]:
    """Numbers and bytes in a tree of arrays or of their shapes."""
    leaves = jax.tree.leaves(tree)
    numbers = sum(leaf.size for leaf in leaves)
    return numbers, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
