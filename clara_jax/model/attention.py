"""Grouped-query attention with rotary positions, windows and a cache."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from clara_jax.config import ModelConfig
from clara_jax.model.fused import fused_attention, takes_fused
from clara_jax.model.layers import Linear, RMSNorm
from clara_jax.model.rope import rotate
from clara_jax.shapes import Array, Bool, Float, Int
from clara_jax.sharding import place

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
    """An empty cache for `batch` rows of at most `slots` tokens."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    nothing = jnp.zeros(shape, jnp.dtype(config.dtype))
    return Cache(
        key=place(nothing, *CACHE_AXES),
        value=place(nothing, *CACHE_AXES),
        positions=jnp.zeros((batch, slots), jnp.int32),
        length=jnp.zeros((), jnp.int32),
        long=jnp.zeros((batch,), bool),
    )


_BLOCK = 128
"""Queries that share a block of scores, until there are `_BLOCKS` blocks."""

_BLOCKS = 4

LayerCache = tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]


def visible_keys(
    query_slots: Int[Array, " T"],
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    window: int | None,
) -> Bool[Array, "B 1 T S"]:
    """Which keys each query sees, when causality alone does not say it.

    Args:
      query_slots: index of each query among the keys.
      query_positions, key_positions: positions in the rows, padding not counted.
      mask: real keys.
      window: a query sees keys fewer than this many positions back; None sees all.

    Returns:
      A dense mask, broadcast over heads.
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
) -> Float[Array, "B T N H"]:
    """Causal attention: cuDNN's where it serves, else in a few blocks of queries.

    XLA computes hidden scores too, and keeps all of them: with four blocks, each over
    the keys it can see, it computes and keeps five eighths.

    Args:
      query, key, value: of the same T tokens, padding on the right.
      window: a query sees keys fewer than this many positions back; None sees all.
      attention: ``auto``, ``xla`` or ``cudnn``; see `fused.takes_fused`.

    Returns:
      ``[B, T, N, H]``.

    Raises:
      ClaraError: ``cudnn`` is asked for and cannot be had.
    """
    length = query.shape[1]
    if window is not None and window >= length:
        window = None
    if takes_fused(query, key, window, attention):
        return fused_attention(query, key, value, window)
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
                query[:, start:end], key[:, keys], value[:, keys], mask=seen[None, None]
            )
        )
    return jnp.concatenate(parts, axis=1)


class Attention(nn.Module):
    """Multi-head attention with fewer key/value heads than query heads.

    Softmax is float32. Rows whose keys are all hidden give a finite average of nothing
    that matters, never NaN, forwards and backwards.

    Attributes:
      implementation: of `causal_attention`, which serves whole rows padded on the
        right; rows under a mask, cached ones among them, are always XLA's.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    qk_norm: bool
    norm_eps: float
    fused: bool
    qkv_bias: bool
    output_bias: bool
    linear: dict[str, dict]
    dtype: str
    param_dtype: str
    implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "B T P"],
        sin: Float[Array, "B T P"],
        visible: Bool[Array, "B 1 T S"] | None,
        cache: LayerCache | None,
        start: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """Mix `x` over the keys it sees, those of `cache` included."""
        query, key, value = self._project(x)
        if self.qk_norm:
            query = self._norm("query_norm")(query)
            key = self._norm("key_norm")(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            assert start is not None
            place = (0, start, 0, 0)
            key = jax.lax.dynamic_update_slice(cache[0], key, place)
            value = jax.lax.dynamic_update_slice(cache[1], value, place)
            cache = (key, value)
        if visible is None:
            mixed = causal_attention(
                query, key, value, self.window, self.implementation
            )
        else:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=visible)
        flat = mixed.reshape(*x.shape[:2], self.num_heads * self.head_dim)
        return self._linear("output", x.shape[-1], self.output_bias)(flat), cache

    def _project(self, x: Float[Array, "B T D"]):
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        widths = [n * self.head_dim for n in heads]
        if self.fused:
            fused = self._linear("query_key_value", sum(widths), self.qkv_bias)(x)
            parts = jnp.split(fused, (widths[0], widths[0] + widths[1]), axis=-1)
        else:
            names = ("query", "key", "value")
            parts = [
                self._linear(name, width, self.qkv_bias)(x)
                for name, width in zip(names, widths, strict=True)
            ]
        return [
            part.reshape(*x.shape[:2], n, self.head_dim)
            for part, n in zip(parts, heads, strict=True)
        ]

    def _linear(self, name: str, features: int, bias: bool) -> Linear:
        return Linear(features, use_bias=bias, name=name, **self.linear[name])

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.norm_eps, self.dtype, self.param_dtype, name=name)


def attention_settings(
    config: ModelConfig, linear: dict[str, dict], implementation: str = "auto"
) -> dict[str, Any]:
    """Arguments of the `Attention` that `config` describes."""
    return {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "window": config.sliding_window,
        "qk_norm": config.qk_norm,
        "norm_eps": config.norm_eps,
        "fused": config.fused_qkv,
        "qkv_bias": config.qkv_bias,
        "output_bias": config.output_bias,
        "linear": linear,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "implementation": implementation,
    }
