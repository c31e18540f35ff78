"""A run in shapes only: what full-size models cost, without memory for one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from clara_jax.clara import Batch, Network, Tokens
from clara_jax.config import ModelConfig, RunConfig
from clara_jax.model import abstract_variables, logical_axes
from clara_jax.sharding import named_sharding, placed, tree_shardings
from clara_jax.stages import STAGES, find_stage
from clara_jax.train.state import TrainState, init_state, make_optimizer, make_schedule
from clara_jax.train.step import StepFunction, compile_on_mesh, make_train_step
from clara_jax.train.weights import make_model, make_network

_CANDIDATES = 20


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """A train step, and the arguments that it takes as ``jax.ShapeDtypeStruct``."""

    step: StepFunction
    state: TrainState
    network: Network
    batch: Batch

    @property
    def arguments(self) -> tuple[TrainState, Network, Batch]:
        """The arguments of `step`."""
        return self.state, self.network, self.batch

    def only(self, *names: str) -> Network:
        """Return the network with these adapters, trained or frozen, and no others."""
        adapters = {**self.network.adapters, **self.state.trainable}
        own = {name: adapters[name] for name in names}
        return dataclasses.replace(self.network, adapters=own)

    def on(self, mesh: Mesh | AbstractMesh) -> "AbstractRun":
        """Return the run with every argument where training puts it on `mesh`."""
        whole = self.state, self.network
        state, network = placed(whole, tree_shardings(mesh, whole, logical_axes))
        rows = jax.tree.map(lambda _: named_sharding(mesh, "batch"), self.batch)
        batch = placed(self.batch, rows)
        return dataclasses.replace(self, state=state, network=network, batch=batch)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lower the step that training runs on `mesh`, ready to be compiled.

        Its devices may be abstract, as of ``jax.experimental.topologies``.
        """
        run = self.on(mesh)
        with jax.set_mesh(mesh):
            return compile_on_mesh(run.step, mesh, run.state).lower(*run.arguments)


def abstract_run(config: RunConfig, shape: ModelConfig, text_vocab: int) -> AbstractRun:
    """Build a run of `config` on a backbone of `shape`, without any array.

    Its tokenizer has `text_vocab` tokens; for its batch see `abstract_batch`.
    """
    shape = dataclasses.replace(
        shape,
        dtype=config.dtype,
        param_dtype=config.param_dtype or shape.param_dtype,
        remat=config.remat,
    )
    stage = find_stage(config)
    every = ("compressor", "generator", "memory", "reasoner")
    start = dataclasses.replace(config, reinit=every)
    model = make_model(config, shape, text_vocab)
    params = abstract_variables(model)["params"]
    schedule = make_schedule(config.optim, max(config.optim.steps, 1))
    optimizer = make_optimizer(config.optim, schedule)
    key = jax.eval_shape(lambda: jax.random.key(0))
    network, trainable = jax.eval_shape(
        lambda params, key: make_network(start, model, params, None, key), params, key
    )
    loss, accumulate = stage.loss(config), config.optim.accumulate
    return AbstractRun(
        step=make_train_step(loss, optimizer, schedule, accumulate=accumulate),
        state=jax.eval_shape(lambda t, k: init_state(t, optimizer, k), trainable, key),
        network=network,
        batch=abstract_batch(config, shape.width),
    )


def abstract_batch(config: RunConfig, width: int) -> Batch:
    """Return the longest batch of a run as ``jax.ShapeDtypeStruct``.

    Vectors compressed beforehand have `width` D; there are 20 candidates, as in the
    paper, if the config does not say.
    """
    rows, memory = config.data.batch_size, config.memory.num_memory
    array: Any = jax.ShapeDtypeStruct
    fields: dict[str, Any] = {}
    for read in STAGES[config.stage].reads(config):
        count = () if read.per_row is None else (read.per_row or _CANDIDATES,)
        sizes = (rows, *count, read.length(config))
        if read.field in ("candidates", "vectors"):
            mask = array(sizes[:2], jnp.bool_)
            fields |= {"candidate_mask": mask, "positives": mask}
        if read.field == "vectors":
            # As `cached_vectors` keeps them, and as they come from a store.
            vectors = (*sizes[:2], memory, width)
            fields["vectors"] = array(vectors, jnp.dtype(config.dtype))
            continue
        ids, mask = array(sizes, jnp.int32), array(sizes, jnp.bool_)
        fields[read.field] = Tokens(ids, mask, right_padded=True)
        if read.field == "prompt":
            fields["labels"] = ids
    return Batch(**fields)
