"""RMSNorm, and the linear layer that may carry a low-rank adapter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clara_jax.model.param_axes import gathered_axes
from clara_jax.model.quantized import quantized_product
from clara_jax.shapes import Array, Float, Key, UInt
from clara_jax.sharding import place


def dropout(
    x: Float[Array, "*rows D"], key: Key, rate: float
) -> Float[Array, "*rows D"]:
    """Set each element to zero with probability `rate` and scale the others up.

    What is dropped depends on the key (typed, threefry) and on an element's place in
    `x` alone, never on how the array is split over devices.
    """
    first, second = jax.random.key_data(key)
    rows = jnp.zeros((*x.shape[:-1], 1), jnp.uint32)
    for axis, size in enumerate(x.shape[:-1]):
        place = jax.lax.broadcasted_iota(jnp.uint32, rows.shape, axis)
        rows = rows * jnp.uint32(size) + place
    rows = _mixed(_mixed(rows ^ first) ^ second)
    columns = _mixed(_mixed(jnp.arange(x.shape[-1], dtype=jnp.uint32) ^ second) ^ first)
    columns = columns.reshape((1,) * (x.ndim - 1) + (-1,))
    kept = _mixed(rows ^ columns) >= jnp.uint32(round(rate * 2**32))
    scale = jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(kept, x * scale, jnp.zeros_like(x))


def _mixed(bits: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """Map 32-bit words one to one, so that each bit moves all others.

    Source: C. Wellons, "Prospecting for hash functions" (2018): lowbias32.
    """
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


PRODUCT = "product"
"""Name of the products that remat policies could not see otherwise: those in half
precision and those with quantized kernels."""


class RMSNorm(nn.Module):
    """Scale rows to unit mean square, in float32; the result is of type `dtype`.

    Attributes:
      centered: multiply by 1 + scale, in float32, rather than by scale.
    """

    eps: float
    dtype: str
    param_dtype: str
    centered: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Norm each row."""
        start = nn.initializers.zeros if self.centered else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), jnp.dtype(self.param_dtype))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.eps)
        if self.centered:
            row = 1 + scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
            return (normed * row).astype(self.dtype)
        # Rounded before the scale, as the backbones were trained.
        row = scale.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return normed.astype(self.dtype) * row


class Linear(nn.Module):
    """``x W + b``, plus ``(alpha / R) (x a) b`` when a ``lora`` collection is given.

    The frozen weights are in ``params``, the adapter in ``lora``; without the latter
    the layer is the base layer. A quantized kernel is taken as it is found. Adapter
    inputs are dropped out where there is a ``dropout`` rng.

    Attributes:
      rank: R; 0 for a layer that carries no adapter.
      scale: alpha / R.
      dropout: share of the adapter's inputs dropped in training.
    """

    features: int
    dtype: str
    param_dtype: str
    use_bias: bool = False
    rank: int = 0
    scale: float = 1.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        """Map each row."""
        inputs, param_dtype = x.shape[-1], jnp.dtype(self.param_dtype)
        if self.has_variable("params", "codes"):
            codes = self.get_variable("params", "codes")
            scales = self.get_variable("params", "scales")
            y = quantized_product(x, codes, scales, gathered_axes(self.name))
            y = checkpoint_name(y, PRODUCT)
        else:
            shape, start = (inputs, self.features), nn.initializers.lecun_normal()
            kernel = self.param("kernel", start, shape, param_dtype)
            y = _product(x, kernel.astype(self.dtype))
        if self.use_bias:
            start = nn.initializers.zeros
            bias = self.param("bias", start, (self.features,), param_dtype)
            y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        wanted = self.is_initializing() or self.has_variable("lora", "a")
        if self.rank and wanted:
            a = self.variable("lora", "a", jnp.zeros, (inputs, self.rank)).value
            b = self.variable("lora", "b", jnp.zeros, (self.rank, self.features)).value
            before, after = gathered_axes(self.name)
            a = place(a.astype(self.dtype), before, None)
            b = place(b.astype(self.dtype), None, after)
            z = x
            if self.dropout and self.has_rng("dropout"):
                z = dropout(z, self.make_rng("dropout"), self.dropout)
            z = _product(_product(z, a), b)
            y = y + z * jnp.asarray(self.scale, z.dtype)
        return y


def _product(
    x: Float[Array, "*rows I"], kernel: Float[Array, "I O"]
) -> Float[Array, "*rows O"]:
    """Return ``x @ kernel``; half precision is summed in float32 and rounded once.

    Accelerators sum so anyway; XLA's kernels for the CPU are twice as fast when told.
    Half precision has reverse-mode derivatives only.
    """
    if x.dtype.itemsize > 2:
        return x @ kernel
    return checkpoint_name(_rounded_product(x, kernel), PRODUCT)


@jax.custom_vjp
def _rounded_product(x, kernel):
    wide = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return wide.astype(x.dtype)


def _product_forward(x, kernel):
    return _rounded_product(x, kernel), (x, kernel)


def _product_backward(saved, gradient):
    # The derivative of a wide product would multiply the widened gradient.
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    wide = jnp.tensordot(x, gradient, (rows, rows), preferred_element_type=jnp.float32)
    return _rounded_product(gradient, kernel.T), wide.astype(kernel.dtype)


_rounded_product.defvjp(_product_forward, _product_backward)
