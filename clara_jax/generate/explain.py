"""What memory vectors say, read through the output head (the logit lens).

The paper looks at the reasoner in this way: among the tokens nearest to a question's
vectors are words that the question does not hold and its documents do.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.clara import Network
from clara_jax.errors import ClaraError
from clara_jax.model import Transformer
from clara_jax.shapes import Array, Float, Int, Params


class Spoken(NamedTuple):
    """A token that a memory vector is close to.

    Attributes:
      token: its text.
      probability: its share of the softmax over the text vocabulary.
    """

    token: str
    probability: float


@functools.partial(jax.jit, static_argnames=("model", "count"))
def nearest_tokens(
    model: Transformer,
    params: Params,
    vectors: Float[Array, "B M D"],
    count: int,
) -> tuple[Int[Array, "B M count"], Float[Array, "B M count"]]:
    """Ids and probabilities of the text tokens with the largest logits.

    Args:
      model: the transformer.
      params: the backbone's.
      vectors: memory vectors, as of `compress` and `reason`.
      count: tokens per vector.

    Returns:
      Two arrays, most probable token first.
    """
    apply: Any = model.apply
    logits = apply({"params": params}, vectors, method="logits")
    chances, ids = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), count)
    return ids, chances


def explain_vectors(
    network: Network,
    vectors: Float[np.ndarray, "n M D"],
    decode: Any,
    count: int,
) -> list[list[list[Spoken]]]:
    """Nearest tokens of every vector of every text, as text.

    Args:
      network: whose head is asked, without adapters or special tokens.
      vectors: of n texts.
      decode: ids to text.
      count: tokens per vector.

    Raises:
      ClaraError: `count` is below 1, or above the vocabulary.

    Returns:
      For each text, for each of its M vectors, `count` tokens.
    """
    model = network.model
    if not 1 <= count <= model.text_vocab:
        raise ClaraError(
            f"{count} tokens per vector were asked for; take 1 to {model.text_vocab}"
        )
    found, params = [], network.backbone["params"]
    for vector in vectors:
        ids, chances = nearest_tokens(model, params, jnp.asarray(vector)[None], count)
        rows = zip(ids[0].tolist(), chances[0].tolist(), strict=True)
        found.append(
            [
                [Spoken(decode([i]), p) for i, p in zip(*row, strict=True)]
                for row in rows
            ]
        )
    return found
