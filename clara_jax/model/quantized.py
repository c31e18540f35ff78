"""Frozen kernels stored in int8 or nf4, and their product with half the bytes or less.

A quantized layer holds ``codes`` and ``scales`` in place of its ``kernel``:

* ``int8``: ``codes`` int8 ``[I, O]``, ``scales`` float32 ``[1, O]``, one per output.
* ``nf4``: ``codes`` uint8 ``[I / 2, O]``, two of the sixteen NormalFloat values a byte,
  ``scales`` bfloat16 ``[I / g, O]`` for groups of g inputs, 64 where that divides. A
  group's first half is in the low four bits, its second half in the high ones.

Codes are packed here rather than kept as ``jnp.uint4``, which takes a whole byte on a
CPU; and looked up by selects rather than in a table, whose gather a TPU neither fuses
nor does fast. ``tests/model/test_quantized.py`` compares both forms with qwix's.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from clara_jax.config import QUANTIZATIONS
from clara_jax.errors import ClaraError
from clara_jax.model.param_axes import logical_axes
from clara_jax.shapes import Array, Float, Params, Shaped
from clara_jax.sharding import place, tree_shardings

GROUP = 64
"""Inputs that share a scale of nf4, as in the QLoRA paper (arXiv 2305.14314)."""

_SMALLEST_GROUP = 8

# Quantiles of the normal distribution: QLoRA paper, appendix E.
# fmt: off
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def quantize_params(params: Params, kind: str) -> Params:
    """Store the layers' kernels of a backbone as `kind` says, out of `QUANTIZATIONS`.

    Embedding table, head, norms and biases stay as they are. Arrays of the host stay
    there and are taken a layer at a time; arrays on a mesh stay on it, laid out as the
    table says. In a trace, shapes are enough.

    Raises:
      ClaraError: no such kind, or a layer whose inputs cannot be cut in groups.
    """
    if kind not in QUANTIZATIONS:
        raise ClaraError(
            f"quantize is '{kind}', but must be one of {', '.join(QUANTIZATIONS)}"
        )
    if kind == "none":
        return params

    def walk(tree: Params, name: str) -> Params:
        if not isinstance(tree, dict):
            return tree
        if "kernel" not in tree:
            return {key: walk(value, key) for key, value in tree.items()}
        rest = dict(tree)
        kernel = rest.pop("kernel")
        if kind == "nf4":
            _group_size(kernel.shape[-2], name)
        return {**rest, **_per_layer(_QUANTIZE[kind], name, kernel)}

    return {**params, "layers": walk(params["layers"], "layers")}


def dequantize_params(params: Params, dtype: Any, name: str = "") -> Params:
    """Undo `quantize_params`, but for what was rounded away.

    Takes all weights, quantized or not, or a part: one linear layer has a `name`.
    """
    if not isinstance(params, dict):
        return params
    if "codes" not in params:
        return {k: dequantize_params(v, dtype, k) for k, v in params.items()}
    rest = {k: v for k, v in params.items() if k not in ("codes", "scales")}
    widen = _dequantize(jnp.dtype(dtype))
    return {**rest, **_per_layer(widen, name, params["codes"], params["scales"])}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantized_product(
    x: Float[Array, "*rows I"],
    codes: Shaped[Array, "C O"],
    scales: Float[Array, "S O"],
    axes: tuple[str | None, str | None] = (None, None),
) -> Float[Array, "*rows O"]:
    """Return ``x W`` for a W in fewer bits, summed in float32 and rounded once.

    Codes are widened where the product reads them. Reverse mode gives the slope of `x`
    and none of W, and keeps the codes for it: a whole kernel is never kept. The `axes`
    are where W lies on the mesh for the product, see `gathered_axes`; devices that
    share W send codes to one another, not what these widen to.
    """
    codes, scales = place(codes, *axes), place(scales, *axes)
    if codes.dtype == jnp.int8:
        # One scale per output: the product itself runs on the bare codes.
        return (_wide(x, codes.astype(x.dtype)) * _row(scales, x)).astype(x.dtype)
    return _wide(x, _widened(codes, scales, x.dtype)).astype(x.dtype)


def _forward(x, codes, scales, axes):
    # Kept as they are stored: gathered, those of all layers would pile up.
    return quantized_product(x, codes, scales, axes), (codes, scales)


def _backward(axes, saved, gradient):
    codes, scales = (place(array, *axes) for array in saved)
    dtype = gradient.dtype
    if codes.dtype == jnp.int8:
        scaled = (gradient.astype(jnp.float32) * _row(scales, gradient)).astype(dtype)
        slope = _wide(scaled, codes.astype(dtype).T)
    else:
        slope = _wide(gradient, _widened(codes, scales, dtype).T)
    return slope.astype(dtype), None, None


quantized_product.defvjp(_forward, _backward)


def _wide(x, kernel):
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _row(scales, x):
    return scales.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def _widened(codes, scales, dtype):
    """Return the kernel ``[I, O]`` of one layer."""
    if codes.dtype == jnp.int8:
        return (codes.astype(jnp.float32) * scales).astype(dtype)
    groups, outputs = scales.shape
    pairs = codes.reshape(groups, -1, outputs)
    # Codes are put together before they are looked up: TPUs then fuse it all.
    values = _looked_up(jnp.concatenate((pairs & 15, pairs >> 4), axis=1))
    kernel = values * scales.astype(jnp.float32)[:, None]
    return kernel.reshape(-1, outputs).astype(dtype)


def _looked_up(codes):
    """Return the values of codes, by one select per bit and pair."""
    # Of jnp.where, a compiled function of its own, XLA would take the sixteen constants
    # out of the loop over layers and keep each as a whole array.
    level = [jax.lax.full(codes.shape, value, jnp.float32) for value in _NF4]
    for bit in range(4):
        high = jax.lax.ne((codes >> bit) & 1, jax.lax.full_like(codes, 0))
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [jax.lax.select(high, b, a) for a, b in pairs]
    return level[0]


def _int8(kernel):
    wide = kernel.astype(jnp.float32)
    scales = _not_zero(jnp.max(jnp.abs(wide), axis=0, keepdims=True) / 127)
    return {"codes": jnp.round(wide / scales).astype(jnp.int8), "scales": scales}


def _nf4(kernel):
    inputs, outputs = kernel.shape
    wide = kernel.astype(jnp.float32).reshape(-1, _group_size(inputs), outputs)
    largest = jnp.max(jnp.abs(wide), axis=1)
    scales = _not_zero(largest).astype(jnp.bfloat16)
    ratio = wide / scales.astype(jnp.float32)[:, None]
    # A value's code is the number of midpoints below it.
    codes = jnp.zeros(ratio.shape, jnp.uint8)
    for low, high in itertools.pairwise(_NF4):
        codes += ratio > (low + high) / 2
    first, second = jnp.split(codes, 2, axis=1)
    packed = (first | (second << 4)).reshape(inputs // 2, outputs)
    return {"codes": packed, "scales": scales}


_QUANTIZE = {"int8": jax.jit(_int8), "nf4": jax.jit(_nf4)}


@functools.lru_cache
def _dequantize(dtype):
    return jax.jit(lambda codes, scales: {"kernel": _widened(codes, scales, dtype)})


def _per_layer(function: Any, name: str, *stacks: Any) -> Params:
    """Map arrays ``[L, ...]`` of the linear layer `name`, one block at a time."""
    if all(isinstance(stack, np.ndarray) for stack in stacks):
        made: Params = {}
        for i, arrays in enumerate(zip(*stacks, strict=True)):
            for key, value in jax.device_get(function(*arrays)).items():
                if not i:
                    made[key] = np.empty((len(stacks[0]), *value.shape), value.dtype)
                made[key][i] = value
        return made

    def run(*stacks):
        return jax.lax.map(lambda arrays: function(*arrays), stacks)

    places = None
    sharding = None if isinstance(stacks[0], Tracer) else stacks[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        shapes = {name: jax.eval_shape(run, *stacks)}
        places = tree_shardings(sharding.mesh, shapes, logical_axes)[name]
    return jax.jit(run, out_shardings=places)(*stacks)


def _not_zero(scales):
    return jnp.where(scales > 0, scales, 1)


def _group_size(inputs: int, layer: str = "") -> int:
    """Return how many inputs share a scale: the largest even divisor up to `GROUP`."""
    sizes = [n for n in range(_SMALLEST_GROUP, GROUP + 1, 2) if inputs % n == 0]
    if not sizes:
        raise ClaraError(
            f"quantize is 'nf4', but the {inputs} inputs of layer '{layer}' cannot be "
            f"cut in even groups of {_SMALLEST_GROUP} to {GROUP}; take int8"
        )
    return sizes[-1]
