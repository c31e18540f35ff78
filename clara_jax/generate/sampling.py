"""From logits to the next token: greedy, or at a temperature within a nucleus."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.shapes import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the best token, whatever the key.
      top_p: draw among the fewest tokens that hold this share of the probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ClaraError(
                f"temperature must be 0 (greedy) or above, not {self.temperature}"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ClaraError(f"top_p must be in (0, 1], not {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature == 0.0


def nucleus(logits: Float[Array, "*B V"], top_p: float) -> Float[Array, "*B V"]:
    """Set logits outside the nucleus to minus infinity.

    The nucleus is the smallest set of tokens whose probabilities sum to at least
    `top_p`; the best token is always in it (Holtzman et al., arXiv 1904.09751).

    Args:
      logits: ``[..., V]``, temperature already applied.
      top_p: share of the probability to keep, in (0, 1].

    Returns:
      Logits of the same shape.
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keep = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B V"], keys: Key | None, sampling: Sampling
) -> Int[Array, " B"]:
    """Draw one token per row.

    Args:
      logits: ``[B, V]`` float32.
      keys: one key per row, ``[B]``, so that a row's draws do not depend on the rows
        beside it; None is greedy sampling.
      sampling: static settings.

    Returns:
      ``[B]`` int32 token ids.
    """
    if sampling.greedy or keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1.0:
        logits = nucleus(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@jax.jit
def row_keys(seed: int | Int[Array, ""], rows: Int[Array, " B"]) -> Key:
    """One key per row number, ``[B]``: a row's draws depend on it and the seed only."""
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def fold_step(keys: Key, step: Int[Array, ""]) -> Key:
    """Keys for one decoding step, ``[B]``."""
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
