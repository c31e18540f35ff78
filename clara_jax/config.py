"""Validated settings: what every part is built from.

Each dataclass checks itself when it is made and names the field that is wrong.
`parse` turns a plain mapping (JSON, an ``ml_collections.ConfigDict``) into one and
refuses keys it does not know.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from clara_jax.errors import ClaraError

T = TypeVar("T")

DTYPES = ("float32", "bfloat16", "float16")
REMAT_POLICIES = ("none", "full", "dots", "dots_no_batch")
STAGES = ("lm", "scp", "instruct", "end_to_end", "rerank")
LORA_LAYERS = (
    "query",
    "key",
    "value",
    "query_key_value",
    "output",
    "gate",
    "up",
    "gate_up",
    "down",
)


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise ClaraError(f"config field '{field}': {message}")


def _positive(section: str, obj: Any, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        _require(value > 0, f"{section}.{name}", f"must be above 0, not {value}")


def _one_of(section: str, obj: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(obj, name)
    _require(
        value in choices,
        f"{section}.{name}",
        f"is '{value}', but must be one of {', '.join(choices)}",
    )


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
      theta: base of the geometric row of wavelengths.
      fraction: share of each head's width that is rotated (Phi-4-mini: 0.75).
      kind: how wavelengths are stretched beyond the trained length.
      factor: stretch of ``linear``, ``llama3``, ``yarn``; for ``longrope`` the ratio of
        the lengths when 0.
      original_max_position: length the base was first trained for; ``longrope`` takes
        its long factors for rows longer than this.
      max_position: longest length the model declares.
      low_frequency, high_frequency: the band of ``llama3``.
      beta_fast, beta_slow: the band of ``yarn``.
      short_factors, long_factors: one divisor per rotated pair, ``longrope`` only.
      attention_factor: multiplies cosines and sines; 0 takes the kind's own rule.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    kind: Literal["default", "linear", "llama3", "yarn", "longrope"] = "default"
    factor: float = 0.0
    original_max_position: int = 0
    max_position: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 0.0

    def __post_init__(self) -> None:
        _positive("rope", self, "theta", "fraction")
        _one_of(
            "rope", self, "kind", ("default", "linear", "llama3", "yarn", "longrope")
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder-only backbone.

    Attributes:
      vocab_size: V, rows of the embedding table as stored.
      width: D. num_layers: depth. num_heads: N. num_kv_heads: K. head_dim: H.
      mlp_dim: F. norm_eps: added to the mean square in every RMSNorm.
      tied: the output head is the embedding table.
      qkv_bias, output_bias, mlp_bias: which projections carry a bias.
      qk_norm: RMSNorm over each head of queries and keys (Qwen3).
      fused_qkv, fused_gate_up: one projection instead of three or two (Phi-3).
      sliding_window: a query sees itself and the ``sliding_window - 1`` keys before it;
        None sees all.
      dtype: compute type; norms, softmax and logits are float32 all the same.
      param_dtype: type in which the frozen weights are kept.
      remat: what a layer keeps for its backward pass: ``none`` keeps all, ``full``
        nothing, ``dots`` matrix products, ``dots_no_batch`` those without batch axes.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    sliding_window: int | None = None
    rope: RopeConfig = RopeConfig()
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self) -> None:
        _positive(
            "model",
            self,
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "norm_eps",
        )
        _require(
            self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads",
            f"{self.num_kv_heads} does not divide num_heads {self.num_heads}",
        )
        _require(
            self.sliding_window is None or self.sliding_window > 0,
            "model.sliding_window",
            f"must be above 0 or none, not {self.sliding_window}",
        )
        _one_of("model", self, "dtype", DTYPES)
        _one_of("model", self, "param_dtype", DTYPES)
        _one_of("model", self, "remat", REMAT_POLICIES)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (paper appendix: rank 16, alpha 32, dropout 0.1, all linear).

    Attributes:
      rank: R. alpha: the update is scaled by ``alpha / rank``.
      dropout: share of an adapter's inputs dropped in training.
      layers: names out of `LORA_LAYERS`, or ``("all",)``; names that a backbone does
        not have are ignored, so one list serves fused and unfused models.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    layers: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        _positive("lora", self, "rank", "alpha")
        _require(
            0 <= self.dropout < 1,
            "lora.dropout",
            f"must be in [0, 1), not {self.dropout}",
        )
        _require(bool(self.layers), "lora.layers", "names no layer; use ('all',)")
        for name in self.layers:
            _require(
                name == "all" or name in LORA_LAYERS,
                "lora.layers",
                f"'{name}' is none of all, {', '.join(LORA_LAYERS)}",
            )

    def covers(self, layer: str) -> bool:
        """Whether the linear layer of this name carries an adapter."""
        return "all" in self.layers or layer in self.layers


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """How a document becomes vectors.

    Attributes:
      doc_max_length: longest document in tokens; the rest is cut off.
      compression_rate: document tokens per memory vector.
      separator: put ``<SEP>`` after each document's slots in the prompt.
    """

    doc_max_length: int = 256
    compression_rate: int = 16
    separator: bool = True

    def __post_init__(self) -> None:
        _positive("memory", self, "doc_max_length", "compression_rate")
        _require(
            self.compression_rate <= self.doc_max_length,
            "memory.compression_rate",
            f"{self.compression_rate} leaves no memory token for documents of "
            f"{self.doc_max_length} tokens",
        )

    @property
    def num_memory(self) -> int:
        """M, memory tokens per document."""
        return self.doc_max_length // self.compression_rate


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """The differentiable top-k (paper section 3.3).

    Attributes:
      top_k: J, documents handed to the generator.
      temperature: divides the cosine scores.
      exclusion: what later slots do with documents already taken: ``reference`` adds
        log(1e-8) to their score, as the original does; ``exact`` leaves them out.
    """

    top_k: int = 5
    temperature: float = 0.02
    exclusion: Literal["reference", "exact"] = "reference"

    def __post_init__(self) -> None:
        _positive("selection", self, "top_k")
        _require(
            self.temperature >= 0, "selection.temperature", "must not be negative"
        )
        _one_of("selection", self, "exclusion", ("reference", "exact"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and what batches look like.

    Attributes:
      train, eval: files or TFDS folders of records; ``eval`` may be empty.
      format: ``auto`` looks at the file; else one of the names in ``data.sources``.
      batch_size: questions (or documents) per optimizer step.
      doc_buckets, prompt_buckets: padded lengths, ascending; a batch takes the
        smallest that holds its longest row. Empty takes the one longest length.
      prompt_max_length: longest prompt with its answer, in tokens.
      question_max_length: longest question for the reasoner; 0 takes doc_max_length.
      window: batches drawn together and sorted by length before they are cut.
      shuffle: draw records in a new random order in every epoch.
      limit: use only the first so many records; 0 takes all.
      cache_vectors: end_to_end: compress every document once, before training.
      workers: threads that prepare batches.
      too_long: what to do with a question longer than its limit: ``error`` or ``cut``.
    """

    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    format: str = "auto"
    batch_size: int = 32
    eval_batch_size: int = 0
    doc_buckets: tuple[int, ...] = ()
    prompt_buckets: tuple[int, ...] = ()
    prompt_max_length: int = 1024
    question_max_length: int = 0
    window: int = 16
    shuffle: bool = True
    limit: int = 0
    eval_limit: int = 0
    cache_vectors: bool = False
    workers: int = 2
    too_long: Literal["error", "cut"] = "error"

    def __post_init__(self) -> None:
        _positive("data", self, "batch_size", "prompt_max_length", "window")
        _one_of("data", self, "too_long", ("error", "cut"))
        for name in ("doc_buckets", "prompt_buckets"):
            lengths = getattr(self, name)
            _require(
                list(lengths) == sorted(set(lengths)) and all(n > 0 for n in lengths),
                f"data.{name}",
                f"must ascend and be above 0, not {lengths}",
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, a schedule and clipping.

    Attributes:
      learning_rate: peak. schedule: ``cosine`` or ``constant``.
      warmup_fraction: share of the steps over which the rate rises from 0.
      final_fraction: the cosine's floor, as a share of the peak.
      steps: optimizer steps; 0 takes ``epochs`` passes over the data.
      accumulate: microbatches per step; must divide the batch size.
      clip_norm: largest global gradient norm; 0 does not clip.
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.03
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    steps: int = 0
    epochs: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        _positive("optim", self, "learning_rate", "accumulate")
        _one_of("optim", self, "schedule", ("cosine", "constant"))
        _require(self.steps >= 0, "optim.steps", "must not be negative")
        _require(
            self.steps > 0 or self.epochs > 0, "optim.epochs", "or steps must be set"
        )
        for name in ("warmup_fraction", "final_fraction"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"optim.{name}", f"must be in [0, 1], not {value}")


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """What happens beside the steps, and how often (in steps; 0 means never).

    Attributes:
      log_every: a line of metrics. eval_every: the evaluators (always at the end too).
      eval_limit: held-out records that a scheduled evaluation reads; 0 reads all.
      checkpoint_every: a full state. keep: how many of them stay.
      max_new_tokens: longest answer an evaluator decodes.
      tensorboard, wandb: where scalars go besides ``metrics.jsonl``.
      profile_steps: write a profiler trace of so many steps after the tenth.
    """

    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 200
    keep: int = 2
    max_new_tokens: int = 32
    tensorboard: bool = True
    wandb: bool = False
    profile_steps: int = 0

    def __post_init__(self) -> None:
        _positive("hooks", self, "log_every", "keep")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
      stage: which loss, out of `STAGES`.
      workdir: the run's folder.
      backbone: a Hugging Face folder or hub name, a ``.gguf`` file, a converted folder,
        ``random:PRESET``, or empty to take that of ``init_from``.
      init_from: folder of an earlier run or converted CLaRa checkpoint; may be empty.
      reinit: adapters of ``init_from`` that start afresh (stage 2: the generator).
      train_generator: end_to_end only: whether the generator's adapter learns too.
      mse_weight: weight of the MSE term (paper equation for the compression loss: 0.1).
      dtype, param_dtype, remat: see `ModelConfig`; empty dtypes take the backbone's.
    """

    stage: str
    workdir: str
    backbone: str = ""
    init_from: str = ""
    reinit: tuple[str, ...] = ()
    train_generator: bool = True
    seed: int = 0
    mse_weight: float = 0.1
    dtype: str = "float32"
    param_dtype: str = ""
    remat: str = "none"
    lora: LoraConfig = LoraConfig()
    memory: MemoryConfig = MemoryConfig()
    selection: SelectionConfig = SelectionConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    hooks: HooksConfig = HooksConfig()

    def __post_init__(self) -> None:
        _one_of("", self, "stage", STAGES)
        _require(bool(self.workdir), "workdir", "is empty; give a folder")
        _require(
            bool(self.backbone or self.init_from),
            "backbone",
            "is empty and there is no init_from; name a base model",
        )
        _require(self.mse_weight >= 0, "mse_weight", "must not be negative")
        _require(
            self.data.batch_size % self.optim.accumulate == 0,
            "optim.accumulate",
            f"{self.optim.accumulate} does not divide data.batch_size "
            f"{self.data.batch_size}",
        )


def parse(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from a mapping, nested ones included.

    Args:
      cls: one of this module's dataclasses.
      values: field values; lists become tuples where the field is a tuple.
      where: what the mapping was read from, put before field names in errors.

    Returns:
      The validated dataclass.

    Raises:
      ClaraError: a key that `cls` does not have (the nearest one is suggested), a
        missing field, a value of the wrong type, or one that the class refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in dict(values).items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            near = difflib.get_close_matches(key, list(known), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ClaraError(f"config field '{path}' is unknown{hint}")
        arguments[key] = _cast(hints[key], value, path)
    for name, field in known.items():
        no_default = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if no_default and name not in arguments:
            path = f"{where}.{name}" if where else name
            raise ClaraError(f"config field '{path}' is missing")
    return cls(**arguments)


def _cast(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise ClaraError(f"config field '{path}' must be a group of fields")
        return parse(typing.cast(type, hint), dict(value.items()), path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _cast(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        if isinstance(value, str):
            value = (value,) if value else ()
        if not isinstance(value, (list, tuple)):
            raise ClaraError(f"config field '{path}' must be a list, not {value!r}")
        return tuple(_cast(args[0], item, path) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ClaraError(
            f"config field '{path}' must be {hint.__name__}, not {value!r}"
        )
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values, the inverse of `parse`."""
    return dataclasses.asdict(config)
