"""Decoding with a key/value cache, in four parts: prefill, one step, loop, sampling.

Prompts come as embeddings, since documents take part in them as vectors, with a mask.
Padding may be anywhere: a prompt of T slots is followed by one slot per new token,
positions go on from each row's own length, and the mask hides the padding.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clara_jax.errors import ClaraError
from clara_jax.model import Cache, Transformer, zeros_cache
from clara_jax.shapes import Array, Bool, Float, Int, Key, Params


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
        """Return whether the best token is always taken."""
        return self.temperature == 0.0


def nucleus(logits: Float[Array, "*B V"], top_p: float) -> Float[Array, "*B V"]:
    """Set logits outside the nucleus to minus infinity.

    The nucleus is the smallest set of tokens whose probabilities sum to at least
    `top_p`; the best token is always in it (Holtzman et al., arXiv 1904.09751).
    """
    order = jnp.argsort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keep = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def sample(
    logits: Float[Array, "B V"], keys: Key | None, sampling: Sampling
) -> Int[Array, " B"]:
    """Draw one token per row, by its own key ``[B]``; None is greedy sampling."""
    if sampling.greedy or keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1.0:
        logits = nucleus(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@jax.jit
def row_keys(seed: int | Int[Array, ""], rows: Int[Array, " B"]) -> Key:
    """Return a key per row ``[B]``: draws depend on its number and the seed alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def fold_step(keys: Key, step: Int[Array, ""]) -> Key:
    """Return the keys ``[B]`` of one decoding step."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How long to decode, when to stop and how to draw.

    Attributes:
      eos_ids: a row stops after any of these.
      pad_id: fills a row that has stopped.
    """

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ClaraError(
                f"max_new_tokens must be above 0, not {self.max_new_tokens}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that changes from step to step.

    Attributes:
      step: tokens drawn so far.
      tokens: ``[B, max_new_tokens]`` drawn tokens, pad where nothing has been drawn.
      done: ``[B]`` rows that have met an end token, or that have no prompt at all.
      cache: keys and values of T prompt slots and ``max_new_tokens`` others.
      visible: ``[B, S]`` cache slots that hold a real token.
      positions: ``[B]`` position of the token drawn last.
      keys: ``[B]`` one random key per row; None when greedy.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "B new"]
    done: Bool[Array, " B"]
    cache: Cache
    visible: Bool[Array, "B S"]
    positions: Int[Array, " B"]
    keys: Key | None


def prefill(
    model: Transformer,
    variables: Params,
    embeddings: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    config: DecodeConfig,
    keys: Key | None = None,
) -> DecodeState:
    """Read the prompts and draw the first token of each row.

    Args:
      model: the backbone.
      variables: of the generator's role, see `Network.variables`.
      embeddings: of the prompts.
      mask: True on real positions; padding may be anywhere.
      config: static settings.
      keys: one per row, see `row_keys`; not needed when greedy.
    """
    rows, length, _ = embeddings.shape
    slots = length + config.max_new_tokens
    visible = jnp.pad(mask, ((0, 0), (0, config.max_new_tokens)))
    apply: Any = model.apply
    hidden, cache = apply(
        variables,
        embeddings,
        jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0),
        visible,
        cache=zeros_cache(model.config, rows, slots),
        method="hidden",
    )
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    state = DecodeState(
        step=jnp.int32(0),
        tokens=jnp.full((rows, config.max_new_tokens), config.pad_id, jnp.int32),
        done=~mask.any(axis=1),
        cache=cache,
        visible=visible,
        positions=mask.sum(axis=1, dtype=jnp.int32) - 1,
        keys=None if config.sampling.greedy else keys,
    )
    return _draw(model, variables, hidden, state, config)


def decode_step(
    model: Transformer, variables: Params, state: DecodeState, config: DecodeConfig
) -> DecodeState:
    """Feed the tokens drawn last, draw the next ones; rows that are done draw pads."""
    token = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1)
    slots = jnp.arange(state.visible.shape[1])
    visible = state.visible | (slots == state.cache.length)[None]
    apply: Any = model.apply
    hidden, cache = apply(
        variables,
        apply(variables, token, method="embed"),
        state.positions[:, None],
        visible,
        cache=state.cache,
        method="hidden",
    )
    state = dataclasses.replace(state, cache=cache, visible=visible)
    return _draw(model, variables, hidden, state, config)


def decode_loop(
    model: Transformer, variables: Params, state: DecodeState, config: DecodeConfig
) -> DecodeState:
    """Step until every row is done or the longest continuation is reached."""
    return jax.lax.while_loop(
        lambda state: (state.step < config.max_new_tokens) & ~state.done.all(),
        lambda state: decode_step(model, variables, state, config),
        state,
    )


_jit = functools.partial(jax.jit, static_argnames=("model", "config"))
jit_prefill = _jit(prefill)
jit_decode_step = _jit(decode_step, donate_argnames="state")
jit_decode_loop = _jit(decode_loop, donate_argnames="state")


def trim(tokens: Any, eos_ids: Sequence[int]) -> list[list[int]]:
    """Return each row of ``[B, new]`` tokens, cut off before its first end token."""
    return [
        list(itertools.takewhile(lambda token: token not in eos_ids, row))
        for row in tokens.tolist()
    ]


def _draw(
    model: Transformer,
    variables: Params,
    hidden: Float[Array, "B 1 D"],
    state: DecodeState,
    config: DecodeConfig,
) -> DecodeState:
    apply: Any = model.apply
    logits = apply(variables, hidden, method="logits")[:, 0]
    keys = None if state.keys is None else fold_step(state.keys, state.step)
    token = jnp.where(state.done, config.pad_id, sample(logits, keys, config.sampling))
    ends = jnp.isin(token, jnp.array(config.eos_ids, jnp.int32))
    return dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=state.tokens.at[:, state.step].set(token),
        done=state.done | ends,
        positions=state.positions + 1,
    )
