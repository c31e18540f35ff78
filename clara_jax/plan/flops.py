"""Floating-point operations by our own count, of all devices together.

Two figures that answer two questions. `useful` is what the method needs, by formula: a
matrix of n numbers costs 2n per token forwards and 2n for the gradient of its input;
frozen weights need no gradient of their own, so LoRA costs 4N per token where full
training costs 6N, and the adapters' own 6 per number; attention comes on top. It is
what MFU is measured by. `performed` adds up the matrix products of the traced program,
loops multiplied, recomputation for the backward pass included.

XLA's cost analysis counts a loop's body once, and is never used for either.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from clara_jax.config import ModelConfig, RunConfig
from clara_jax.stages import STAGES


@dataclasses.dataclass(frozen=True)
class Reading:
    """Rows that one role reads in a step.

    Attributes:
      role: compressor, reasoner, generator or backbone.
      rows, length: how many, and their padded tokens.
      trained: whether gradients go through.
      adapter: whether it carries LoRA.
      logits: tokens whose output distribution is computed.
    """

    role: str
    rows: int
    length: int
    trained: bool
    adapter: bool = True
    logits: int = 0

    @property
    def tokens(self) -> int:
        """Tokens with their padding."""
        return self.rows * self.length


def layer_sizes(shape: ModelConfig) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of the matrices of one layer."""
    queries, keys = (n * shape.head_dim for n in (shape.num_heads, shape.num_kv_heads))
    qkv = [("query", queries), ("key", keys), ("value", keys)]
    if shape.fused_qkv:
        qkv = [("query_key_value", queries + 2 * keys)]
    gates = [("gate", shape.mlp_dim), ("up", shape.mlp_dim)]
    if shape.fused_gate_up:
        gates = [("gate_up", 2 * shape.mlp_dim)]
    return [
        *((name, shape.width, size) for name, size in qkv),
        ("output", queries, shape.width),
        *((name, shape.width, size) for name, size in gates),
        ("down", shape.mlp_dim, shape.width),
    ]


def readings(config: RunConfig, candidates: int = 20) -> list[Reading]:
    """What a train step reads, at the longest lengths that the config allows."""
    found = []
    for read in STAGES[config.stage].reads(config):
        if not read.role:
            continue
        rows, length = config.data.batch_size, read.length(config)
        if read.per_row is not None:
            rows *= read.per_row or candidates
        logits = rows * (length - 1) if read.field == "prompt" else 0
        adapter = read.role != "backbone"
        found.append(Reading(read.role, rows, length, read.trained, adapter, logits))
    return found


def useful(reading: Reading, config: RunConfig, shape: ModelConfig) -> dict[str, float]:
    """Operations that the method needs for one reading, by formula.

    Args:
      reading: what is read.
      config: stage and LoRA settings.
      shape: of the backbone.

    Returns:
      ``matrices`` (4N per token where trained with LoRA, 2N where not trained, 6N where
      the backbone itself learns), ``adapters``, ``attention`` (causal: half of all
      pairs) and ``head``.
    """
    sizes = layer_sizes(shape)
    matrices = shape.num_layers * sum(a * b for _, a, b in sizes)
    adapters = 0
    if reading.adapter:
        rank = config.lora.rank
        widths = sum(a + b for name, a, b in sizes if config.lora.covers(name))
        adapters = shape.num_layers * rank * widths
    passes = 1 if not reading.trained else 2 if reading.adapter else 3
    pairs = reading.rows * reading.length * (reading.length + 1) / 2
    heads = shape.num_heads * shape.head_dim * shape.num_layers
    return {
        "matrices": 2.0 * passes * matrices * reading.tokens,
        "adapters": (6.0 if reading.trained else 2.0) * adapters * reading.tokens,
        "attention": (3 if reading.trained else 1) * 4.0 * heads * pairs,
        "head": 2.0 * passes * shape.width * shape.vocab_size * reading.logits,
    }


def performed(function: Any, *arguments: Any) -> float:
    """Matrix products of a traced function, loops multiplied.

    What the result does not depend on is left out first, as compilers do. Of the
    branches of a condition the costliest counts.

    Args:
      function: anything that ``jax.make_jaxpr`` takes.
      *arguments: arrays or shapes.
    """
    from jax.interpreters import partial_eval

    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    return _count(jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(out.shape) * depth
            continue
        inner = [_count(part) for part in _inner(params)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += (params["length"] if name == "scan" else 1) * sum(inner)
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """Jaxprs among the parameters of an equation."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                found.append(item)
    return found
