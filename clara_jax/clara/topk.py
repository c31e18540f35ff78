"""Relevance and the differentiable top-k (paper section 3.3)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from clara_jax.shapes import Array, Bool, Float, Int, Scores

_TAKEN = 1e-8


def cosine_scores(
    queries: Float[Array, "B W"], documents: Float[Array, "B C W"]
) -> Scores:
    """Cosine of each question with its candidates, in float32.

    Args:
      queries: flat question vectors, ``W = M * D``.
      documents: flat document vectors.

    Returns:
      ``[B, C]`` scores in [-1, 1]; 0 where a vector is all zero.
    """
    # Accelerators would otherwise round the factors to half precision.
    return jnp.einsum(
        "bw,bcw->bc", _unit(queries), _unit(documents), precision="highest"
    )


def _unit(x: Float[Array, "*rows W"]) -> Float[Array, "*rows W"]:
    wide = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@jax.custom_vjp
def _softmax(x: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """Softmax in float32, rounded once; its slope is taken from the rounded value."""
    return jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype)


def _softmax_forward(x: Float[Array, "B C"]):
    soft = _softmax(x)
    return soft, soft


def _softmax_backward(soft: Float[Array, "B C"], cotangent: Float[Array, "B C"]):
    wide, slope = soft.astype(jnp.float32), cotangent.astype(jnp.float32)
    # Differences first: near a one-hot row the two products would cancel badly.
    mean = jnp.sum(slope * wide, axis=-1, keepdims=True)
    return (((slope - mean) * wide).astype(soft.dtype),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


def soft_topk(
    scores: Scores,
    k: int,
    temperature: float,
    exclusion: str = "reference",
    mask: Bool[Array, "B C"] | None = None,
    indices: Int[Array, "B J"] | None = None,
) -> tuple[Float[Array, "B J C"], Int[Array, "B J"]]:
    """Choose k documents; exact choices forwards, softmax gradients backwards.

    Slot j holds the j-th best document as a one-hot row. Backwards, the row is a
    softmax over the scores in which documents that earlier slots took are held back:

    * ``reference`` adds log(1e-8), about -18.4, to their score, as the original does.
      At temperature 0.02 that is 0.37 of cosine: a taken document that leads by more
      still draws most of a later slot's gradient.
    * ``exact`` leaves them out altogether.

    Args:
      scores: ``[B, C]``, higher is better.
      k: J, documents to choose; at most C.
      temperature: divides the scores, 1e-6 at least.
      exclusion: ``reference`` or ``exact``.
      mask: candidates that exist; the others are never chosen while real ones last.
      indices: take these choices instead of the best (their order matters for ties).

    Returns:
      Weights ``[B, J, C]`` and the chosen indices ``[B, J]``, best first.

    Raises:
      ValueError: k above C.

    Example::

      weights, chosen = soft_topk(scores, k=5, temperature=0.02)
      selected = jnp.einsum("bjc,bcmd->bjmd", weights, vectors)
    """
    candidates = scores.shape[-1]
    if k > candidates:
        raise ValueError(f"top_k {k} is above the number of candidates {candidates}")
    logits = scores / jnp.asarray(max(temperature, 1e-6), scores.dtype)
    if mask is not None:
        # Finite, so that rows without any candidate stay finite too.
        absent = jnp.finfo(scores.dtype).min / 4
        scores, logits = (jnp.where(mask, x, absent) for x in (scores, logits))
    if indices is None:
        _, indices = jax.lax.top_k(jax.lax.stop_gradient(scores), k)
    taken = jnp.zeros_like(scores)
    slots = []
    for j in range(k):
        hard = jax.nn.one_hot(indices[:, j], candidates, dtype=scores.dtype)
        if exclusion == "exact":
            held = jnp.where(taken > 0, -jnp.inf, logits)
        else:
            held = logits + jnp.log(1 - taken + _TAKEN)
        soft = _softmax(held)
        slots.append(hard + (soft - jax.lax.stop_gradient(soft)))
        taken = taken + hard
    return jnp.stack(slots, axis=1), indices


class SoftTopK(nn.Module):
    """`soft_topk` as a module without parameters."""

    k: int
    temperature: float = 0.02
    exclusion: str = "reference"

    def __call__(
        self, scores: Scores, mask: Bool[Array, "B C"] | None = None
    ) -> tuple[Float[Array, "B J C"], Int[Array, "B J"]]:
        """Weights and indices, see `soft_topk`."""
        return soft_topk(scores, self.k, self.temperature, self.exclusion, mask)
