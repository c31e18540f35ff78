"""Grouped-query attention with rotary positions, windows and a cache.

Whole rows padded on the right are attended by cuDNN on NVIDIA GPUs, where it serves: it
keeps no scores and skips hidden ones, for which it must be told of causality and
windows rather than be given a mask. Elsewhere XLA computes them in a few blocks.
"""

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from clara_jax.config import ModelConfig
from clara_jax.errors import ClaraError
from clara_jax.model.layers import Linear, RMSNorm
from clara_jax.model.rope import rotate
from clara_jax.shapes import Array, Bool, Float, Int
from clara_jax.sharding import RULES, place

ATTENTIONS = ("auto", "xla", "cudnn")
"""``auto`` takes cuDNN where it serves; ``cudnn`` fails where it does not."""

_LARGEST_HEAD = 128
"""Widest head that cuDNN takes on every GPU since Ampere, backwards as well."""

_BLOCK, _BLOCKS = 128, 4
"""Queries that share a block of scores, until there are so many blocks."""

_log = logging.getLogger(__name__)

CACHE_AXES = ("layers", "batch", None, "kv_heads", None)
"""Logical axes of cached keys and values."""


@struct.dataclass
class Cache:
    """Keys and values of all layers, with room for tokens to come.

    Attributes:
      key, value: ``[L, B, S, K, H]``, one slot per token, in reading order.
      positions: ``[B, S]`` position of each slot's token in its row.
      length: slots filled so far, one number for the whole batch.
      long: ``[B]`` rows that read with ``longrope``'s long factors; settled by the
        first call, since cached keys cannot be turned again.
    """

    key: Float[Array, "L B S K H"]
    value: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    length: Int[Array, ""]
    long: Bool[Array, " B"]


def zeros_cache(config: ModelConfig, batch: int, slots: int) -> Cache:
    """Return an empty cache for `batch` rows of at most `slots` tokens."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    nothing = jnp.zeros(shape, jnp.dtype(config.dtype))
    return Cache(
        key=place(nothing, *CACHE_AXES),
        value=place(nothing, *CACHE_AXES),
        positions=jnp.zeros((batch, slots), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        long=jnp.zeros((batch,), bool),
    )


LayerCache = tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]
Rotation = tuple[Float[Array, "B T P"], Float[Array, "B T P"]]
"""Cosines and sines, as of `rope_tables`."""
Visible = Bool[Array, "B 1 T S"]
"""Keys that each query sees, as of `visible_keys`."""


def visible_keys(
    query_slots: Int[Array, " T"],
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    window: int | None,
) -> Visible:
    """Return which keys each query sees, when causality alone does not say it.

    Slots count the keys, positions those of a row that are not padding; `mask` is the
    real keys. A query sees keys fewer than `window` positions back; with None, all.
    """
    slots = jnp.arange(mask.shape[-1])
    seen = (slots[None, :] <= query_slots[:, None])[None] & mask[:, None, :]
    if window is not None:
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        seen &= distance < window
    return seen[:, None]


def causal_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    window: int | None = None,
    attention: str = "auto",
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attend causally, by cuDNN where it serves, else in a few blocks of queries.

    XLA computes hidden scores too, and keeps all of them: with four blocks, each over
    the keys it can see, it computes and keeps five eighths. For `window` see
    `visible_keys`. Scores are multiplied by `scale`; None is one over the root of H.

    Raises:
      ClaraError: ``cudnn`` is asked for and cannot be had.
    """
    length = query.shape[1]
    if window is not None and window >= length:
        window = None
    if takes_fused(query, key, window, attention):
        return fused_attention(query, key, value, window, scale)
    block = -(-length // min(max(-(-length // _BLOCK), 1), _BLOCKS))
    parts = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = 0 if window is None else max(start - window + 1, 0)
        distance = jnp.arange(start, end)[:, None] - jnp.arange(first, end)[None, :]
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        keys = slice(first, end)
        parts.append(
            jax.nn.dot_product_attention(
                query[:, start:end],
                key[:, keys],
                value[:, keys],
                mask=seen[None, None],
                scale=scale,
            )
        )
    return jnp.concatenate(parts, axis=1)


def fused_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    window: int | None = None,
    scale: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attend causally by cuDNN, in half precision, as `causal_attention` does."""
    # JAX refuses odd lengths backwards. Documents of 256 tokens make rows of 275; no
    # query sees the key put behind them.
    length = query.shape[1]
    pad = ((0, 0), (0, length % 2), (0, 0), (0, 0))
    # cuDNN wants queries, keys, values and their slopes laid out alike on a mesh, so
    # heads are split only where the mesh divides those of keys as well.
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else RULES.mesh_axes("kv_heads")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    heads = "kv_heads" if key.shape[2] % parts == 0 else None
    padded = (jnp.pad(x, pad) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(
        *(place(x, "batch", None, heads, None) for x in padded),
        is_causal=True,
        scale=scale,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return place(mixed, "batch", None, heads, None)[:, :length]


def takes_fused(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    window: int | None,
    attention: str,
) -> bool:
    """Return whether a causal product is to be computed by cuDNN.

    Decided while tracing, from the devices of ``jax.set_mesh`` or else the default
    device: choosing while lowering (``jax.lax.platform_dependent``) would make the
    backward pass carry what either way keeps, scores included. Where ``auto`` would
    take it and cuDNN refuses, a warning is logged once.

    Raises:
      ClaraError: ``cudnn`` is asked for and cannot be had, or `attention` is no choice.
    """
    if attention not in ATTENTIONS:
        raise ClaraError(
            f"attention is '{attention}', but must be one of {', '.join(ATTENTIONS)}"
        )
    forced = attention == "cudnn"
    if attention == "xla" or not (forced or _on_nvidia()):
        return False
    head, refusal = query.shape[-1], None
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
    """Return whether what is traced now will run on an NVIDIA GPU."""
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
    """Return why cuDNN takes no rows of this shape, forwards or backwards, or None.

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
    """Return a GPU of this process; None where programs for one are only compiled."""
    try:
        return jax.local_devices(backend="gpu")[0]
    except RuntimeError:
        return None


@functools.cache
def _warn(refusal: str) -> None:
    _log.warning("attention is XLA's, which is slower, as cuDNN refuses: %s", refusal)


class Attention(nn.Module):
    """Multi-head attention with fewer key/value heads than query heads.

    Softmax is float32. Rows whose keys are all hidden give a finite average of nothing
    that matters, never NaN, forwards and backwards.

    Attributes:
      scale: multiplies scores; None is one over the root of `head_dim`.
      linear, norm: arguments of `Linear`, by layer, and of `RMSNorm`.
      implementation: out of `ATTENTIONS`, for whole rows padded on the right; rows
        under a mask, cached ones among them, are always XLA's.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    scale: float | None
    qk_norm: bool
    fused: bool
    qkv_bias: bool
    output_bias: bool
    linear: dict[str, dict]
    norm: dict[str, Any]
    implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Rotation,
        visible: Visible | None,
        cache: LayerCache | None,
        start: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Mix `x` over the keys it sees, those of `cache` included."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        widths = [n * self.head_dim for n in heads]
        if self.fused:
            fused = self._linear("query_key_value", sum(widths), self.qkv_bias)(x)
            parts = jnp.split(fused, (widths[0], widths[0] + widths[1]), axis=-1)
        else:
            names = zip(("query", "key", "value"), widths, strict=True)
            parts = [self._linear(*name, self.qkv_bias)(x) for name in names]
        query, key, value = (
            part.reshape(*x.shape[:2], n, self.head_dim)
            for part, n in zip(parts, heads, strict=True)
        )
        if self.qk_norm:
            query = RMSNorm(**self.norm, name="query_norm")(query)
            key = RMSNorm(**self.norm, name="key_norm")(key)
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            assert start is not None
            place = (0, start, 0, 0)
            key = jax.lax.dynamic_update_slice(cache[0], key, place)
            value = jax.lax.dynamic_update_slice(cache[1], value, place)
            cache = (key, value)
        if visible is None:
            options = self.window, self.implementation, self.scale
            mixed = causal_attention(query, key, value, *options)
        else:
            mixed = jax.nn.dot_product_attention(
                query, key, value, mask=visible, scale=self.scale
            )
        flat = mixed.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return self._linear("output", x.shape[-1], self.output_bias)(flat), cache

    def _linear(self, name: str, features: int, bias: bool) -> Linear:
        return Linear(features, use_bias=bias, name=name, **self.linear[name])
