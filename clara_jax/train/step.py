"""One optimizer step and one evaluation step, of every stage.

Both are pure functions: what is frozen is in the network, neither in the state nor an
argument of ``grad``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clara_jax.clara import Batch, Loss, Network
from clara_jax.model import logical_axes
from clara_jax.shapes import Array, Key, Params
from clara_jax.sharding import named_sharding, tree_shardings
from clara_jax.train.state import Schedule, TrainState

Metrics = dict[str, Array]

StepFunction = Callable[..., tuple[TrainState, Metrics]]
"""``(state, network, batch)`` and, optionally, ``rate``, the learning rate."""


def split_batch(batch: Batch, parts: int) -> Batch:
    """Cut rows ``[B, ...]`` into ``[parts, B / parts, ...]``, every parts-th together.

    Strided parts leave each row on the device that it is sharded to.
    """
    rows = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]), batch)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)


def total_weights(loss: Loss, network: Network, parts: Batch) -> dict[str, Array]:
    """Add up the weights of a loss's terms over microbatches ``[parts, rows, ...]``.

    They depend on the batch alone: compilation leaves nothing of the forward pass.
    """
    weights = jax.lax.map(lambda batch: loss(network, batch, None)[1], parts)
    return jax.tree.map(lambda w: w.sum(0), weights)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Schedule,
    *,
    accumulate: int = 1,
) -> StepFunction:
    """Build the train step; compile it with `compile_on_mesh` or ``jax.jit``.

    The loss is ``sum over terms of sums / weights`` over the whole batch. With
    `accumulate` microbatches per step, which divide the rows of every batch, their
    weights are added up first, so that the gradients of the parts add up to the
    gradient of the whole batch exactly.

    Returns:
      ``(state, network, batch, rate=None) -> (state, metrics)``; without a rate the
      schedule gives it. Metrics: ``loss``, ``loss/<term>``, what the loss reports,
      ``grad_norm`` (before clipping), ``lr`` and ``finite``. A step that is not finite
      changes nothing but `healthy`.
    """

    def weigh(
        trainable: dict[str, Params], network: Network, batch: Batch, rng: Key, weights
    ):
        sums, own, metrics = loss(network.with_adapters(trainable), batch, rng)
        weights = jax.lax.stop_gradient(own if weights is None else weights)
        terms = {name: _ratio(sums[name], weights[name]) for name in sums}
        total = sum(terms.values(), start=jnp.zeros((), jnp.float32))
        return total, (terms, metrics)

    gradient = jax.value_and_grad(weigh, has_aux=True)

    def whole(state: TrainState, network: Network, batch: Batch, rng: Key):
        rng = jax.random.fold_in(rng, 0)
        return gradient(state.trainable, network, batch, rng, None)

    def in_parts(state: TrainState, network: Network, batch: Batch, rng: Key):
        parts = split_batch(batch, accumulate)
        rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(accumulate))
        trained = network.with_adapters(state.trainable)
        weights = total_weights(loss, trained, parts)

        def add_part(total, part):
            batch, rng = part
            new = gradient(state.trainable, network, batch, rng, weights)
            return jax.tree.map(jnp.add, total, new), None

        example = jax.tree.map(lambda x: x[0], (parts, rngs))
        shapes = jax.eval_shape(gradient, state.trainable, network, *example, weights)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add_part, zeros, (parts, rngs))[0]

    def train_step(
        state: TrainState, network: Network, batch: Batch, rate: Array | None = None
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.key, state.step)
        compute = whole if accumulate == 1 else in_parts
        (total, (terms, reported)), grads = compute(state, network, batch, rng)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        good = state.healthy & finite
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.trainable, rate=rate
        )
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": total,
            **{f"loss/{name}": value for name, value in terms.items()},
            **{name: _ratio(*pair, empty=jnp.nan) for name, pair in reported.items()},
            "grad_norm": norm,
            "lr": schedule(state.step) if rate is None else rate,
            "finite": finite,
        }
        state = TrainState(
            step=state.step + good,
            trainable=_choose(good, trainable, state.trainable),
            opt_state=_choose(good, opt_state, state.opt_state),
            key=state.key,
            healthy=good,
        )
        return state, metrics

    return train_step


def make_eval_step(loss: Loss) -> Callable[..., Any]:
    """Build the evaluation step: the stage's loss without dropout.

    It is ``(trainable, network, batch) -> (sums, weights, metrics)`` as the loss gives
    them, to be added up over batches and divided once.
    """

    def eval_step(trainable: dict[str, Params], network: Network, batch: Batch):
        return loss(network.with_adapters(trainable), batch, None)

    return eval_step


def compile_on_mesh(step: StepFunction, mesh: Mesh, state: TrainState) -> Any:
    """Compile a train step for a mesh: the function that training runs.

    Call or lower it inside ``jax.set_mesh(mesh)``, so that activations are placed too.
    The state, of which shapes are enough here, is donated to the step and comes back
    laid out as the table says.
    """
    shardings = tree_shardings(mesh, state, logical_axes)
    outputs = (shardings, named_sharding(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=outputs)


def _ratio(total: Array, weight: Array, empty: float = 0.0) -> Array:
    """Divide; `empty` (and no gradient) where nothing was weighed."""
    some = weight > 0
    return jnp.where(some, total / jnp.where(some, weight, 1), empty)


def _choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
