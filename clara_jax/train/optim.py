"""AdamW, its schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clara_jax.config import OptimConfig
from clara_jax.shapes import Array

Schedule = Callable[[Any], Array]
"""Steps done before an update to the learning rate of that update."""


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Build the learning rate over a run: linear warm-up, then cosine or constant.

    The first update already has a rate above 0 (``1 / warm-up`` of the peak), so that
    no step is spent on nothing; the last update of a cosine ends at the floor.

    Args:
      config: peak, kind, warm-up share and floor.
      steps: optimizer steps of the whole run.

    Returns:
      The schedule, float32.
    """
    warmup = math.ceil(config.warmup_fraction * steps)
    floor = config.final_fraction if config.schedule == "cosine" else 1.0

    def schedule(count: Array) -> Array:
        count = jnp.asarray(count, jnp.float32)
        rise = (count + 1) / max(warmup, 1)
        progress = (count + 1 - warmup) / max(steps - warmup, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        share = jnp.where(count < warmup, rise, floor + (1 - floor) * cosine)
        return config.learning_rate * share

    return schedule


def make_optimizer(
    config: OptimConfig, schedule: Schedule
) -> optax.GradientTransformation:
    """Build the optimizer of every stage: clip by global norm, then AdamW.

    Args:
      config: decay rates, weight decay (on matrices, never on norm scales and biases)
        and the largest gradient norm.
      schedule: see `make_schedule`.

    Returns:
      An optax transformation.

    Source: paper table 10 (AdamW, clip 1.0) and the reference's betas (0.9, 0.95).
    """
    clip = (
        optax.clip_by_global_norm(config.clip_norm)
        if config.clip_norm > 0
        else optax.identity()
    )
    return optax.chain(
        clip,
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params: Any) -> Any:
    """Which leaves decay: layers are stacked, so that names tell and not ranks."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return getattr(path[-1], "key", None) not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)
