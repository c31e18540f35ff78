"""cuDNN's fused attention on NVIDIA GPUs: where it serves, and what if it refuses.

It keeps no scores and skips hidden ones, for which it must be told of causality and
windows rather than be given a mask.
"""

from __future__ import annotations

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.shapes import Array, Float
from clara_jax.sharding import RULES, place

ATTENTIONS = ("auto", "xla", "cudnn")
"""``auto`` takes cuDNN where it serves; ``cudnn`` fails where it does not."""

_LARGEST_HEAD = 128
"""Widest head that cuDNN takes on every GPU since Ampere, backwards as well."""

_log = logging.getLogger(__name__)


def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention by cuDNN; `takes_fused` says whether it can be had.

    Args:
      query, key, value: half precision, padding on the right.
      window: a query sees keys fewer than this many positions back; None sees all.

    Returns:
      ``[B, T, N, H]``, up to rounding what `causal_attention` gives.
    """
    # JAX refuses odd lengths backwards. Documents of 256 tokens make rows of 275; no
    # query sees the key put behind them.
    length = query.shape[1]
    pad = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    heads = _shared_heads(key.shape[2])
    mixed = jax.nn.dot_product_attention(
        *(
            place(jnp.pad(x, pad), "batch", None, heads, None)
            for x in (query, key, value)
        ),
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return place(mixed, "batch", None, heads, None)[:, :length]


def _shared_heads(kv_heads: int) -> str | None:
    """The logical axis of heads, if the mesh divides those of keys as well.

    cuDNN wants queries, keys, values and their slopes laid out alike on a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else RULES.mesh_axes("kv_heads")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    return "kv_heads" if kv_heads % parts == 0 else None


def takes_fused(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    window: int | None,
    attention: str,
) -> bool:
    """Whether a causal product is to be computed by cuDNN.

    Decided while tracing, from the devices of ``jax.set_mesh`` or else the default
    device. Choosing while lowering (``jax.lax.platform_dependent``) would make the
    backward pass carry what either way keeps, scores included.

    Args:
      query, key: what is to be multiplied.
      window: as of `fused_attention`.
      attention: out of `ATTENTIONS`.

    Returns:
      True for cuDNN. Where ``auto`` would take it and cuDNN refuses, a warning is
      logged once and the answer is False.

    Raises:
      ClaraError: ``cudnn`` is asked for and cannot be had, or `attention` is no choice.
    """
    if attention not in ATTENTIONS:
        raise ClaraError(
            f"attention is '{attention}', but must be one of {', '.join(ATTENTIONS)}"
        )
    if attention == "xla":
        return False
    forced = attention == "cudnn"
    if not forced and not _on_nvidia():
        return False
    head = query.shape[-1]
    refusal = None
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        refusal = f"it needs bfloat16 or float16, not {query.dtype}"
    elif head % 8 or head > _LARGEST_HEAD:
        refusal = f"heads must be a multiple of 8 up to {_LARGEST_HEAD}, not {head}"
    if refusal is None:
        sizes = (query.shape[1], query.shape[2], key.shape[2], head)
        refusal = _refusal(*sizes, str(query.dtype), window)
    elif not forced:
        return False
    if refusal is None:
        return True
    if forced:
        raise ClaraError(f"attention 'cudnn' cannot be had: {refusal}; use 'auto'")
    _warn(refusal)
    return False


def _on_nvidia() -> bool:
    """Whether what is traced now will run on an NVIDIA GPU."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        # A context of its thread, which pyright does not know.
        device = jax.config.jax_default_device  # pyright: ignore
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return device.platform in ("gpu", "cuda") and "NVIDIA" in device.device_kind


@functools.cache
def _refusal(
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    window: int | None,
) -> str | None:
    """Why cuDNN takes no rows of this shape, forwards and backwards; None if it does.

    Some refusals come from JAX while tracing, others from cuDNN while XLA compiles, too
    late for another choice. So one row is compiled here first, if there is a GPU here,
    in a thread of its own: meshes and traces around this call are not seen there.
    """

    def work(query, key, value):
        run = functools.partial(fused_attention, window=window)
        mixed, backwards = jax.vjp(run, query, key, value)
        return backwards(mixed)

    def attempt() -> None:
        device = _local_gpu()
        place = None if device is None else jax.sharding.SingleDeviceSharding(device)
        shapes = [
            jax.ShapeDtypeStruct((1, length, n, head_dim), dtype, sharding=place)
            for n in (heads, kv_heads, kv_heads)
        ]
        traced = jax.jit(work).trace(*shapes)
        if device is not None:
            traced.lower().compile()

    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(attempt).result()
        except Exception as error:  # whatever it is, XLA's own attention works
            return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _local_gpu() -> Any:
    """A GPU of this process; None where programs for one are only compiled."""
    try:
        return jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _warn(refusal: str) -> None:
    _log.warning("attention is XLA's, which is slower, as cuDNN refuses: %s", refusal)
