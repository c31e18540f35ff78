"""Training, compression and decoding on random weights and tokens, made on the device.

All rows are full, so that every token counted is one computed. Operations are counted
as 2 per weight of the layers and token forwards, and 4 where gradients pass (adapters
train, the weights do not); the output head counts where there are labels. Attention
scores, adapters and what rematerialisation repeats are left out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from device_figures import Work

from clara_jax.clara import IGNORE, Batch, Network, Tokens
from clara_jax.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SelectionConfig,
)
from clara_jax.generate import DecodeConfig, decode_loop, prefill
from clara_jax.model import Transformer, abstract_variables
from clara_jax.sharding import make_mesh
from clara_jax.train.abstract_run import abstract_run
from clara_jax.train.state import count_bytes, count_parameters
from clara_jax.train.step import compile_on_mesh

STAGES = ("scp", "instruct", "end_to_end", "rerank")
CANDIDATES, SELECTED = 20, 5
_STRETCH = 64
"""Positions whose logits the loss makes together."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows, and lengths in tokens, that suit a backbone.

    Attributes:
      rows: of a training batch, by stage.
      documents: compressed together. answers: decoded together.
      document, rate: tokens of a document, and of them per vector.
      prompt, answer: of a training prompt, and of them supervised.
      question: of a question with the text around it. new: decoded.
      product: side of the matrices multiplied. copied: bytes.
    """

    rows: dict[str, int]
    documents: int = 64
    answers: int = 16
    document: int = 256
    rate: int = 16
    prompt: int = 512
    answer: int = 192
    question: int = 64
    new: int = 64
    product: int = 8192
    copied: int = 2**30


LARGE = Sizes({"scp": 16, "instruct": 8, "end_to_end": 16, "rerank": 4})
"""For 80 GB."""

SMALL = Sizes(
    {"scp": 4, "instruct": 2, "end_to_end": 4, "rerank": 2}, documents=8, answers=4
)
"""For 16 GB."""

TOY = Sizes(
    {"scp": 4, "instruct": 2, "end_to_end": 4, "rerank": 2},
    documents=8,
    answers=2,
    document=32,
    rate=8,
    prompt=96,
    answer=32,
    question=16,
    new=8,
    product=512,
    copied=2**24,
)


@dataclasses.dataclass
class Runs:
    """What can be timed on one backbone.

    Attributes:
      shape: of the backbone, with its types.
      memory: lengths of documents and of their vectors.
      prompt: tokens of a training prompt. answer: of them supervised.
      question: tokens of a question and the text around it, where answers are decoded.
      new: tokens decoded.
      attention: as of `Transformer`.
      remat: as of `ModelConfig`, in training.
    """

    shape: ModelConfig
    memory: MemoryConfig
    prompt: int
    answer: int
    question: int
    new: int
    attention: str = "auto"
    remat: str = "full"

    def __post_init__(self) -> None:
        self.mesh = make_mesh(devices=jax.local_devices()[:1])
        self.vocab = self.shape.vocab_size
        model = Transformer(
            self.shape, self.vocab, LoraConfig(), attention=self.attention
        )
        shapes = abstract_variables(model)
        self.params = fill(shapes["params"])
        width, count = self.shape.width, self.memory.num_memory

        def rows(number: int) -> Any:
            return jax.ShapeDtypeStruct((number, width), jnp.float32)

        special = {"marks": rows(3)}
        if not self.shape.tied:
            special["head"] = rows(count + 3)
        self.network = Network(
            model,
            {"params": self.params, "rows": fill(special)},
            fill({"memory": rows(count), "generator": shapes["lora"]}),
        )
        self.layers = count_parameters(shapes["params"]["layers"])
        self.head = width * self.vocab
        self.size = count_parameters(shapes["params"])

    def train(self, stage: str, rows: int, attention: str | None = None) -> Work:
        """One optimizer step of a stage, in one microbatch."""
        attention = attention or self.attention
        config = dataclasses.replace(self.config(stage, rows), attention=attention)
        run = abstract_run(config, self.shape, self.vocab)
        batch = self.batch(run.batch)
        states = [fill(run.state)]
        backbone, adapters = self.network.backbone, fill(run.network.adapters)
        frozen = Network(run.network.model, backbone, adapters)
        with jax.set_mesh(self.mesh):
            step = compile_on_mesh(run.step, self.mesh, run.state)
            program = step.lower(states[0], frozen, batch).compile()

        def once(_):
            states[0], metrics = program(states[0], frozen, batch)
            return metrics

        trained = sum(
            part.ids.size
            for part in (batch.prompt, batch.documents, batch.question)
            if part is not None
        )
        frozen_tokens = 0 if batch.candidates is None else batch.candidates.ids.size
        labelled = 0
        if batch.prompt is not None:
            labelled = rows * _STRETCH * -(-self.answer // _STRETCH)
        counts: dict[str, float] = {"tokens": trained + frozen_tokens, "rows": rows}
        read = batch.documents if batch.candidates is None else batch.candidates
        if read is not None:
            counts["documents"] = float(np.prod(read.ids.shape[:2]))
        flops = (4 * trained + 2 * frozen_tokens) * self.layers
        return Work(
            program,
            once,
            counts,
            flops=flops + 4.0 * labelled * self.head,
            note=f"{rows} rows, {attention_of(program)}",
        )

    def compression(self, rows: int) -> Work:
        """Documents to vectors, the adapter merged into the weights."""
        tokens = self.encoder_rows((rows,))

        def read(network, tokens):
            return network.compress(tokens, role=None).memory

        given = (self.with_merged_adapter(), tokens)
        with jax.set_mesh(self.mesh):
            program = jax.jit(read).lower(*given).compile()
        return Work(
            program,
            lambda _: program(*given),
            {"tokens": tokens.ids.size, "documents": rows},
            flops=2.0 * tokens.ids.size * self.layers,
            note=f"{rows} documents, {attention_of(program)}",
        )

    def decoding(
        self, rows: int, text: bool, merged: bool = True
    ) -> tuple[Work, Callable[[], Work]]:
        """Answers from documents as vectors or as text: first token, then the others.

        The others are compiled when the second result is called.

        Args:
          rows: answers decoded together.
          text: whether documents stand in the prompt as text.
          merged: the adapter is in the weights, not beside them.
        """
        count, width = self.memory.num_memory, self.shape.width
        documents = SELECTED * (self.memory.doc_max_length if text else count + 1)
        length = documents + self.question
        ids = self.words((rows, length))
        if not text:
            slots = np.tile(self.slots(), SELECTED)
            ids[:, self.question // 2 :][:, : len(slots)] = slots
        prompt = _tokens(ids)
        vectors = jax.random.normal(
            jax.random.key(1), (rows, 0 if text else SELECTED, count, width)
        ).astype(self.shape.dtype)
        settings = DecodeConfig(max_new_tokens=self.new, eos_ids=(), pad_id=0)
        role = None if merged else "generator"
        network = self.with_merged_adapter() if merged else self.network

        def start(network, prompt, vectors):
            x = network.embed(prompt, vectors)
            variables = network.variables(role)
            return prefill(network.model, variables, x, prompt.mask, settings)

        def finish(state, network):
            variables = network.variables(role)
            return decode_loop(network.model, variables, state, settings).tokens

        given = (network, prompt, vectors)
        with jax.set_mesh(self.mesh):
            first = jax.jit(start).lower(*given).compile()
        steps = self.new - 1
        read = (
            count_bytes(self.params["layers"])
            + self.head * jnp.dtype(self.shape.param_dtype).itemsize
        )
        note = f"{rows} x {length} tokens of prompt" + (
            "" if merged else ", LoRA apart"
        )
        work = Work(
            first,
            lambda _: first(*given),
            {"tokens": rows * length, "answers": rows},
            flops=2.0 * rows * (length * self.layers + self.head),
            note=note,
        )

        def others() -> Work:
            state = first(*given)
            with jax.set_mesh(self.mesh):
                rest = jax.jit(finish).lower(state, network).compile()
            return Work(
                rest,
                lambda state: rest(state, network),
                {"tokens": rows * steps},
                flops=2.0 * rows * steps * (self.layers + self.head),
                moved=float(steps * read),
                setup=lambda: first(*given),
                note=note,
            )

        return work, others

    def with_merged_adapter(self) -> Network:
        """The network as merging leaves it to run: without adapters beside weights."""
        own = {"memory": self.network.adapters["memory"]}
        return dataclasses.replace(self.network, adapters=own)

    def config(self, stage: str, rows: int) -> RunConfig:
        """The paper's settings, without data."""
        return RunConfig(
            stage=stage,
            workdir="unused",
            backbone="random:shape",
            dtype=self.shape.dtype,
            param_dtype=self.shape.param_dtype,
            remat=self.remat,
            memory=self.memory,
            selection=SelectionConfig(top_k=1 if stage == "scp" else SELECTED),
            data=DataConfig(
                batch_size=rows,
                prompt_max_length=self.prompt,
                candidates=CANDIDATES,
                cache_vectors=stage == "end_to_end",
            ),
            optim=OptimConfig(steps=1000),
        )

    def batch(self, shapes: Batch) -> Batch:
        """Random contents for the shapes of a batch."""
        found: dict[str, Any] = {}
        for name in ("question", "documents", "candidates"):
            part = getattr(shapes, name)
            if part is not None:
                found[name] = self.encoder_rows(part.ids.shape)
        if shapes.prompt is not None:
            rows, length = shapes.prompt.ids.shape
            groups = 1 if shapes.documents is None else shapes.documents.ids.shape[1]
            groups = SELECTED if shapes.question is not None else groups
            ids = self.words((rows, length))
            slots = np.tile(self.slots(), groups)
            ids[:, 8 : 8 + len(slots)] = slots
            labels = np.full_like(ids, IGNORE)
            labels[:, -self.answer :] = ids[:, -self.answer :]
            found |= {"prompt": _tokens(ids), "labels": jnp.asarray(labels)}
        if shapes.vectors is not None:
            found["vectors"] = fill(shapes.vectors)
        if shapes.positives is not None:
            first = np.arange(CANDIDATES) == 0
            positives = np.broadcast_to(first, shapes.positives.shape)
            found["positives"] = jnp.asarray(positives)
            found["candidate_mask"] = jnp.ones(positives.shape, bool)
        return Batch(**found)

    def encoder_rows(self, shape: tuple[int, ...]) -> Tokens:
        """Documents or questions as the compressor reads them."""
        count = self.memory.num_memory
        if len(shape) == 1:
            shape = (*shape, self.memory.doc_max_length + 3 + count)
        ids = self.words(shape)
        ids[..., 0] = self.vocab + count + 1
        ids[..., -count:] = np.arange(self.vocab, self.vocab + count)
        return _tokens(ids)

    def words(self, shape: tuple[int, ...]) -> np.ndarray:
        """Random ids."""
        rng = np.random.default_rng(len(shape))
        return rng.integers(3, self.vocab, shape).astype(np.int32)

    def slots(self) -> np.ndarray:
        """A document's place in a prompt: M memory tokens and SEP."""
        n, count = self.vocab, self.memory.num_memory
        return np.array([*range(n, n + count), n + count + 2], np.int32)


def fill(shapes: Any) -> Any:
    """Arrays for a tree of shapes, drawn on the device: nothing passes the host.

    Numbers are normal with deviation 0.02, but for norms and for the optimizer's state.
    """

    def draw(path, leaf):
        names = jax.tree_util.keystr(path)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if names.endswith("['scale']") or leaf.dtype == bool:
            return jnp.ones(leaf.shape, leaf.dtype)
        if "opt_state" in names or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return _draw(leaf.shape, str(leaf.dtype), len(names))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    # A part at a time (a layer, some rows), since random bits take more room than
    # the numbers.
    parts = math.gcd(shape[0], 64)

    def part(key):
        size = (shape[0] // parts, *shape[1:])
        return (0.02 * jax.random.normal(key, size)).astype(dtype)

    drawn = jax.lax.map(part, jax.random.split(jax.random.key(seed), parts))
    return drawn.reshape(shape)


def attention_of(program: Any) -> str:
    """Which attention a compiled program calls, read from the program itself."""
    calls = len(re.findall(r"__cudnn\$fmha", program.as_text()))
    return f"cuDNN attention in {calls} places" if calls else "XLA attention"


def _tokens(ids: np.ndarray) -> Tokens:
    return Tokens(jnp.asarray(ids), jnp.ones(ids.shape, bool), right_padded=True)
