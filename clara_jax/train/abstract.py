"""A run in shapes only: what full-size models cost, without memory for one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from clara_jax.clara import STAGES, Batch, Tokens, make_loss
from clara_jax.config import ModelConfig, RunConfig
from clara_jax.model import (
    Transformer,
    abstract_variables,
    logical_axes,
    quantize_params,
)
from clara_jax.sharding import named_sharding, tree_shardings
from clara_jax.train.optim import make_optimizer, make_schedule
from clara_jax.train.start import make_adapters, trained_names
from clara_jax.train.state import TrainState, init_state
from clara_jax.train.step import StepFunction, compile_on_mesh, make_train_step


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """Everything a train step takes, as ``jax.ShapeDtypeStruct``.

    Attributes:
      model: the transformer, as the stage uses it.
      step: the function that training compiles.
      state, backbone, frozen, batch: its arguments; on a mesh, with their places.
    """

    model: Transformer
    step: StepFunction
    state: TrainState
    backbone: dict[str, Any]
    frozen: dict[str, Any]
    batch: Batch

    @property
    def arguments(self) -> tuple[TrainState, dict[str, Any], dict[str, Any], Batch]:
        """What the step is called with."""
        return self.state, self.backbone, self.frozen, self.batch

    def on(self, mesh: Mesh | AbstractMesh) -> AbstractRun:
        """The same run with every argument where training puts it on `mesh`."""
        state, backbone, frozen = placed(
            (self.state, self.backbone, self.frozen),
            tree_shardings(
                mesh, (self.state, self.backbone, self.frozen), logical_axes
            ),
        )
        rows = jax.tree.map(lambda _: named_sharding(mesh, "batch"), self.batch)
        return dataclasses.replace(
            self,
            state=state,
            backbone=backbone,
            frozen=frozen,
            batch=placed(self.batch, rows),
        )

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lower the step that training runs on `mesh`, ready to be compiled.

        Args:
          mesh: of devices that may be abstract, as of ``jax.experimental.topologies``.

        Returns:
          What ``compile()`` makes a program of.
        """
        run = self.on(mesh)
        with jax.set_mesh(mesh):
            return compile_on_mesh(run.step, mesh, run.state).lower(*run.arguments)

    def trace(self) -> tuple[TrainState, dict[str, Any]]:
        """Trace one step and return the shapes that it gives back."""
        return jax.eval_shape(self.step, *self.arguments)


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes of a tree with the places where its arrays lie.

    Args:
      tree: arrays or shapes.
      shardings: the same tree of shardings.

    Returns:
      The same tree of ``jax.ShapeDtypeStruct``.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def abstract_run(
    config: RunConfig,
    shape: ModelConfig,
    text_vocab: int,
    *,
    candidates: int = 20,
    attention: str = "",
) -> AbstractRun:
    """Build a run of `config` on a backbone of `shape`, without any array.

    Args:
      config: stage, settings and lengths.
      shape: of the backbone.
      text_vocab: length of its tokenizer.
      candidates: C of end_to_end and rerank, if the config does not say.
      attention: as of `Transformer`, in place of the config's.

    Returns:
      The run. Batches have the longest lengths that the config allows.
    """
    shape = dataclasses.replace(
        shape,
        dtype=config.dtype,
        param_dtype=config.param_dtype or shape.param_dtype,
        remat=config.remat,
    )
    lora = None if config.stage == "lm" else config.lora
    model = Transformer(
        shape, text_vocab, lora, attention=attention or config.attention
    )
    params = abstract_variables(model)["params"]
    schedule = make_schedule(config.optim, max(config.optim.steps, 1))
    optimizer = make_optimizer(config.optim, schedule)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if config.stage == "lm":
        backbone: dict[str, Any] = {"params": None}
        trainable, frozen = {"backbone": params}, {}
    else:
        every = ("compressor", "generator", "memory", "reasoner")
        start = dataclasses.replace(config, reinit=every)
        adapters, rows = jax.eval_shape(
            lambda params, key: make_adapters(start, model, params, None, key),
            params,
            key,
        )
        backbone = {"params": _quantized(params, config.quantize), "rows": rows}
        trains = trained_names(config)
        trainable = {name: adapters[name] for name in trains}
        frozen = {k: v for k, v in adapters.items() if k not in trains}
    loss = make_loss(
        config.stage,
        num_memory=config.memory.num_memory,
        mse_weight=config.mse_weight,
        selection=config.selection,
    )
    return AbstractRun(
        model=model,
        step=make_train_step(
            loss, model, optimizer, schedule, accumulate=config.optim.accumulate
        ),
        state=jax.eval_shape(lambda t, k: init_state(t, optimizer, k), trainable, key),
        backbone=backbone,
        frozen=frozen,
        batch=abstract_batch(config, shape.width, candidates),
    )


def _quantized(params: Any, kind: str) -> Any:
    return jax.eval_shape(lambda params: quantize_params(params, kind), params)


def abstract_batch(config: RunConfig, width: int, candidates: int = 20) -> Batch:
    """Shapes of the longest batch of a run.

    Args:
      config: the run.
      width: D, for vectors compressed beforehand.
      candidates: C, if the config does not say.

    Returns:
      A batch of ``jax.ShapeDtypeStruct``.
    """
    rows = config.data.batch_size
    num_memory = config.memory.num_memory
    candidates = config.data.candidates or candidates
    encoder = config.memory.doc_max_length + 3 + num_memory
    question = config.data.question_max_length or config.memory.doc_max_length
    question += 3 + num_memory

    def array(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def tokens(*sizes: int) -> Tokens:
        ids, mask = array(jnp.int32, *sizes), array(jnp.bool_, *sizes)
        return Tokens(ids, mask, right_padded=True)

    length = config.data.prompt_max_length
    batch = Batch(prompt=tokens(rows, length), labels=array(jnp.int32, rows, length))
    if not STAGES[config.stage].compresses:
        return batch
    if config.stage in ("scp", "instruct"):
        documents = 1 if config.stage == "scp" else config.selection.top_k
        return dataclasses.replace(batch, documents=tokens(rows, documents, encoder))
    offered: dict[str, Any] = {"candidates": tokens(rows, candidates, encoder)}
    if config.has_vectors:
        # As `cached_vectors` keeps them, and as they come from a store.
        dtype = jnp.dtype(config.dtype)
        vectors = array(dtype, rows, candidates, num_memory, width)
        offered = {"vectors": vectors}
    if config.stage == "rerank":
        batch = Batch()
    return dataclasses.replace(
        batch,
        question=tokens(rows, question),
        candidate_mask=array(jnp.bool_, rows, candidates),
        positives=array(jnp.bool_, rows, candidates),
        **offered,
    )
