"""Relevance and the differentiable top-k (paper section 3.3)."""

import jax
import jax.numpy as jnp

from clara_jax.shapes import Array, Bool, Float, Int, Scores

_TAKEN = 1e-8


def cosine_scores(
    queries: Float[Array, "B W"], documents: Float[Array, "B C W"]
) -> Scores:
    """Return the cosine of flat vectors of questions and of their candidates, float32.

    ``W = M * D``. The cosine is 0 where a vector is all zero.
    """
    # Accelerators would otherwise round the factors to half precision.
    return jnp.einsum(
        "bw,bcw->bc", _unit(queries), _unit(documents), precision="highest"
    )


def _unit(x: Float[Array, "*rows W"]) -> Float[Array, "*rows W"]:
    wide = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


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
      scores: higher is better.
      k: J, documents to choose; at most C.
      temperature: divides the scores, 1e-6 at least.
      exclusion: ``reference`` or ``exact``.
      mask: candidates that exist; the others are never chosen while real ones last.
      indices: take these choices instead of the best (their order matters for ties).

    Returns:
      Weights and the chosen indices, best first.

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
        share = jax.lax.stop_gradient(jax.nn.softmax(held, axis=-1))
        # The slope of this softmax, differences first: near a one-hot row the two
        # products of its own derivative would cancel badly.
        soft = share * logits
        soft = soft - share * jnp.sum(soft, axis=-1, keepdims=True)
        slots.append(hard + (soft - jax.lax.stop_gradient(soft)))
        taken = taken + hard
    return jnp.stack(slots, axis=1), indices
