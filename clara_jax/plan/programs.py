"""The functions that commands run, with the shapes and places of their arguments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from clara_jax.clara import Tokens
from clara_jax.errors import ClaraError
from clara_jax.generate.batched import compress_batch, decoder_variables
from clara_jax.generate.decode import DecodeConfig, jit_decode_step, jit_prefill
from clara_jax.model import Cache, logical_axes, zeros_cache
from clara_jax.model.cache import CACHE_AXES
from clara_jax.plan.case import Case
from clara_jax.plan.flops import Reading, readings, useful
from clara_jax.sharding import MESH_AXES, batch_parts, tree_shardings
from clara_jax.train.abstract import AbstractRun, abstract_run, placed


@dataclasses.dataclass(frozen=True)
class Program:
    """One function to be compiled.

    Attributes:
      name: what it does.
      lower: lowers it on a mesh; takes also the compiled program before it, if any.
      function, arguments: to be traced for counting.
      useful: operations by formula; see `flops.useful`.
      tokens, rows: that it reads or writes in one call.
      repeats: calls per unit of work.
    """

    name: str
    lower: Callable[[Mesh, Any], Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    useful: dict[str, float]
    tokens: int
    rows: int
    repeats: int = 1


def abstract_mesh(case: Case) -> AbstractMesh:
    """The mesh of a case, without devices."""
    return AbstractMesh(
        tuple(case.sizes.values()), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES)
    )


def run_of(case: Case) -> AbstractRun:
    """The training run of a case, in shapes."""
    return abstract_run(case.config, case.shape, case.text_vocab)


def programs(case: Case) -> list[Program]:
    """Everything that a case compiles.

    Raises:
      ClaraError: the rows do not go round evenly.
    """
    run = run_of(case)
    if case.work == "train":
        counted: dict[str, float] = {}
        read = readings(case.config)
        for reading in read:
            for name, value in useful(reading, case.config, run.model.config).items():
                counted[name] = counted.get(name, 0.0) + value
        return [
            Program(
                name="train step",
                lower=lambda mesh, before: run.lower(mesh),
                function=run.step,
                arguments=run.arguments,
                useful=counted,
                tokens=sum(reading.tokens for reading in read),
                rows=case.config.data.batch_size,
            )
        ]
    if case.config.stage == "lm":
        raise ClaraError(f"--work {case.work}: stage lm has no adapters to work with")
    parts = batch_parts(abstract_mesh(case))
    if case.rows % parts:
        raise ClaraError(f"--rows {case.rows}: {parts} devices cannot share them")
    return _compress(case, run) if case.work == "compress" else _decode(case, run)


def _compress(case: Case, run: AbstractRun) -> list[Program]:
    memory = case.config.memory
    length = memory.doc_max_length + 3 + memory.num_memory
    reading = Reading("compressor", case.rows, length, trained=False)
    ids: Any = jax.ShapeDtypeStruct((case.rows, length), jnp.int32)
    mask: Any = jax.ShapeDtypeStruct((case.rows, length), jnp.bool_)
    tokens = Tokens(ids, mask, right_padded=True)
    adapters = {**run.frozen, **run.state.trainable}
    given = (run.backbone, {n: adapters[n] for n in ("compressor", "memory")}, tokens)

    def call(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(
            run.model, *arguments, memory.num_memory, "compressor"
        )

    def lower(mesh: Mesh, before: Any) -> Any:
        return call(compress_batch.lower)(*on_mesh(mesh, given))

    return [
        Program(
            name="compress a batch of documents",
            lower=lower,
            function=call(compress_batch),
            arguments=given,
            useful=useful(reading, case.config, run.model.config),
            tokens=reading.tokens,
            rows=case.rows,
        )
    ]


def _decode(case: Case, run: AbstractRun) -> list[Program]:
    config, model = case.config, run.model
    new, length = config.hooks.max_new_tokens, config.data.prompt_max_length
    decoding = DecodeConfig(max_new_tokens=new, eos_ids=(2,), pad_id=0)
    adapters = {**run.frozen, **run.state.trainable}
    if "generator" not in adapters:
        raise ClaraError(f"--work decode: stage {config.stage} has no generator")
    wanted = {n: adapters[n] for n in ("generator", "memory")}
    variables = jax.eval_shape(
        lambda backbone, adapters: decoder_variables(
            backbone, adapters, "generator", None
        ),
        run.backbone,
        wanted,
    )
    prompt = jax.ShapeDtypeStruct(
        (case.rows, length, model.config.width), jnp.dtype(model.config.dtype)
    )
    mask = jax.ShapeDtypeStruct((case.rows, length), jnp.bool_)
    first = Reading("generator", case.rows, length, False, logits=case.rows)
    step = Reading("generator", case.rows, 1, False, logits=case.rows)
    counted = useful(step, config, model.config)
    pairs = case.rows * (length + new / 2)
    heads = case.shape.num_heads * case.shape.head_dim * case.shape.num_layers
    counted["attention"] = 4.0 * heads * pairs

    def prefill(*arguments: Any) -> Any:
        return jit_prefill(model, *arguments, decoding)

    def lower_prefill(mesh: Mesh, before: Any) -> Any:
        return jit_prefill.lower(
            model, *on_mesh(mesh, (variables, prompt, mask)), decoding
        )

    def lower_step(mesh: Mesh, before: Any) -> Any:
        """The state lies where reading the prompts has left it."""
        state = jax.eval_shape(prefill, variables, prompt, mask)
        if before is not None:
            state = placed(state, before.output_shardings)
        return jit_decode_step.lower(model, on_mesh(mesh, variables), state, decoding)

    return [
        Program(
            name="read the prompts",
            lower=lower_prefill,
            function=prefill,
            arguments=(variables, prompt, mask),
            useful=useful(first, config, model.config),
            tokens=first.tokens,
            rows=case.rows,
        ),
        Program(
            name="one token more",
            lower=lower_step,
            function=lambda variables, state: jit_decode_step(
                model, variables, state, decoding
            ),
            arguments=(variables, jax.eval_shape(prefill, variables, prompt, mask)),
            useful=counted,
            tokens=case.rows,
            rows=case.rows,
            repeats=new - 1,
        ),
    ]


def on_mesh(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Shapes with their places: weights by the table, all else split by rows."""

    def axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
        known = logical_axes(path, rank)
        weights = any(known) or path[-1] in _WHOLE or "params" in path
        return known if weights else ("batch", *(None,) * (rank - 1))[:rank]

    return placed(tree, tree_shardings(mesh, tree, axes))


_WHOLE = ("memory", "marks", "head", "embedding")
"""Small weights without axes of their own."""


def decoding_cache(case: Case) -> tuple[Cache, Callable[..., Any]]:
    """The cache of keys and values that answers need, and the axes of its arrays."""
    config = case.config
    slots = config.data.prompt_max_length + config.hooks.max_new_tokens
    shape = dataclasses.replace(case.shape, dtype=config.dtype)
    rows = case.rows or config.data.batch_size
    cache = jax.eval_shape(lambda: zeros_cache(shape, rows, slots))

    def axes(path: tuple[str, ...], rank: int) -> tuple[str | None, ...]:
        if path[-1] in ("key", "value"):
            return CACHE_AXES
        return ("batch", None)[:rank]

    return cache, axes


def bytes_per_device(tree: Any) -> int:
    """Exact bytes of placed shapes on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += math.prod(local_shape(leaf)) * leaf.dtype.itemsize
    return total


def local_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Shape of the part of an array that one device holds."""
    assert isinstance(leaf.sharding, NamedSharding)
    return leaf.sharding.shard_shape(leaf.shape)
