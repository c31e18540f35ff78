"""What a run changes from step to step, and how: state, AdamW, schedule, clipping."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clara_jax.config import OptimConfig
from clara_jax.shapes import Array, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint holds; the frozen backbone is not in it.

    Attributes:
      step: int32 scalar, optimizer steps done.
      trainable: adapter name to tree, float32; the only argument of ``grad``.
      opt_state: of the optimizer, for `trainable` alone.
      key: dropout of step ``i`` is drawn from ``fold_in(key, i)``.
      healthy: bool scalar, False once a loss or gradient was not finite. From then on
        steps change nothing, so that this is the last good state.
    """

    step: Any
    trainable: dict[str, Params]
    opt_state: Any
    key: Any
    healthy: Any

    def saved(self) -> dict[str, Any]:
        """Return the arrays of a checkpoint (the key as plain integers)."""
        return {
            "step": self.step,
            "trainable": self.trainable,
            "opt_state": self.opt_state,
            "key": jax.random.key_data(self.key),
        }

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "TrainState":
        """Undo `saved`; the state is healthy again."""
        return cls(
            step=saved["step"],
            trainable=saved["trainable"],
            opt_state=saved["opt_state"],
            key=jax.random.wrap_key_data(saved["key"]),
            healthy=jnp.array(True),
        )


def init_state(
    trainable: dict[str, Params], optimizer: optax.GradientTransformation, key: Key
) -> TrainState:
    """Make the state of step 0; compile it to have its arrays made where they lie.

    The trees of `trainable` are copied as float32; the typed `key` seeds dropout.
    """
    trainable = jax.tree.map(
        lambda x: jnp.array(x, jnp.float32, copy=True), dict(trainable)
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        key=key,
        healthy=jnp.array(True),
    )


def count_parameters(tree: Any) -> int:
    """Count the numbers in a tree of arrays or of shapes."""
    return sum(x.size for x in jax.tree.leaves(tree))


def count_bytes(tree: Any) -> int:
    """Count the bytes of a tree of arrays or of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


Schedule = Callable[[Any], Array]
"""Steps done before an update to the learning rate of that update."""


def rate_at(config: OptimConfig, progress: float) -> np.float32:
    """Return the learning rate of a run that is measured by something else than steps.

    `progress` is the share of the run that is over when the step at hand ends, in
    (0, 1]. Computed on the host: nothing waits for a device.
    """
    warmup = config.warmup_fraction
    rise = progress / max(warmup, 1e-9)
    fall = (progress - warmup) / max(1 - warmup, 1e-9)
    return np.float32(_rate(config, progress < warmup, rise, fall, np))


def _rate(config: OptimConfig, rising: Any, rise: Any, fall: Any, xp: Any = jnp) -> Any:
    floor = config.final_fraction if config.schedule == "cosine" else 1.0
    cosine = 0.5 * (1 + xp.cos(xp.pi * xp.clip(fall, 0, 1)))
    share = xp.where(rising, rise, floor + (1 - floor) * cosine)
    return config.learning_rate * share


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Build the learning rate over a run: linear warm-up, then cosine or constant.

    The first update of the run's `steps` already has a rate above 0 (``1 / warm-up`` of
    the peak), so that no step is spent on nothing; the last one of a cosine ends at the
    floor.
    """
    warmup = math.ceil(config.warmup_fraction * steps)

    def schedule(count: Array) -> Array:
        count = jnp.asarray(count, jnp.float32)
        rise = (count + 1) / max(warmup, 1)
        fall = (count + 1 - warmup) / max(steps - warmup, 1)
        return _rate(config, count < warmup, rise, fall)

    return schedule


def make_optimizer(
    config: OptimConfig, schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of every stage: clip by global norm, then AdamW.

    Its ``update`` takes the learning rate as ``rate``, where the schedule does not know
    it (a run that ends at a deadline); None asks the schedule. Weight decay is on
    matrices, never on norm scales and biases.

    Source: paper table 10 (AdamW, clip 1.0) and the reference's betas (0.9, 0.95).
    """
    clip = config.clip_norm
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip > 0 else optax.identity(),
        # AdamW as optax puts it together, but for where the rate may come from.
        optax.chain(
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            optax.add_decayed_weights(config.weight_decay, _decayed),
            _scale_by_rate(schedule),
        ),
    )


def _scale_by_rate(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    scheduled = optax.scale_by_learning_rate(schedule)

    def update(updates: Any, state: Any, params: Any = None, *, rate=None, **_: Any):
        if rate is None:
            return scheduled.update(updates, state, params)
        fixed = optax.scale_by_schedule(lambda _: -rate)
        return fixed.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(scheduled.init, update)


def _decayed(params: Any) -> Any:
    """Mark the leaves that decay, by name: ranks do not tell, as layers are stacked."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) not in ("scale", "bias"), params
    )
