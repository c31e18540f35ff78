"""What a training run changes from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clara_jax.shapes import Key, Params


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
        """The arrays of a checkpoint (the key as plain integers)."""
        return {
            "step": self.step,
            "trainable": self.trainable,
            "opt_state": self.opt_state,
            "key": jax.random.key_data(self.key),
        }

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> TrainState:
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

    Args:
      trainable: adapter name to tree; copied as float32.
      optimizer: see `optim.make_optimizer`.
      key: a typed key; seeds dropout.

    Returns:
      The state. Works under ``jax.eval_shape``.
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
