"""Settings of what is computed: the backbone, its adapters, memory and selection."""

import dataclasses
from typing import Literal, get_args

from clara_jax.config.parsing import (
    below_one,
    check_choices,
    not_negative,
    positive,
    require,
)

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4"]
Remat = Literal["none", "full", "dots", "dots_no_batch"]
# fmt: off
LoraLayer = Literal[
    "query", "key", "value", "query_key_value", "output",
    "gate", "up", "gate_up", "down",
]
# fmt: on
DTYPES: tuple[str, ...] = get_args(Dtype)
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
REMAT_POLICIES: tuple[str, ...] = get_args(Remat)
LORA_LAYERS: tuple[str, ...] = get_args(LoraLayer)

ROW_MARKS = 3
"""Tokens around the text that the compressor reads: ``<ENC>``, bos and eos."""


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
        positive("rope", self, "theta", "fraction")
        check_choices("rope", self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of one decoder-only backbone.

    Attributes:
      vocab_size: V, rows of the embedding table as stored.
      width, num_heads, num_kv_heads, head_dim, mlp_dim: D, N, K, H, F.
      norm_eps: added to the mean square in every RMSNorm.
      tied: the output head is the embedding table.
      qkv_bias, output_bias, mlp_bias: which projections carry a bias.
      qk_norm: RMSNorm over each head of queries and keys (Qwen3).
      fused_qkv, fused_gate_up: one projection instead of three or two (Phi-3).
      sliding_window: a query sees itself and the ``sliding_window - 1`` keys before it;
        None sees all.
      full_layers: layers, counted from 0, that see all in spite of `sliding_window`.
      unrotated_layers: layers, counted from 0, without rotary positions (SmolLM3).
      window_rope: rope of the layers under `sliding_window`; None takes `rope`.
      activation: what the feed-forward's gate goes through.
      centered_norms: norms multiply by 1 + scale, and round after that (Gemma).
      output_norms: what attention and feed-forward return is normed as well (Gemma).
      scaled_embeddings: embeddings of tokens, special ones included, are multiplied by
        the root of `width` (Gemma).
      score_dim: attention scores are divided by its root; 0 takes `head_dim`.
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
    full_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    rope: RopeConfig = RopeConfig()
    window_rope: RopeConfig | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    centered_norms: bool = False
    output_norms: bool = False
    scaled_embeddings: bool = False
    score_dim: int = 0
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: Remat = "none"

    def __post_init__(self) -> None:
        sizes = "vocab_size width num_layers num_heads num_kv_heads head_dim mlp_dim"
        positive("model", self, *sizes.split(), "norm_eps")
        heads, kv_heads, window = self.num_heads, self.num_kv_heads, self.sliding_window
        uneven = f"{kv_heads} does not divide num_heads {heads}"
        require(heads % kv_heads == 0, "model.num_kv_heads", uneven)
        wrong = f"must be above 0 or none, not {window}"
        require(window is None or window > 0, "model.sliding_window", wrong)
        for name in ("full_layers", "unrotated_layers"):
            layers = getattr(self, name)
            wrong = f"must name layers from 0 to {self.num_layers - 1}, not {layers}"
            known = all(0 <= layer < self.num_layers for layer in layers)
            require(known, f"model.{name}", wrong)
        if (other := self.window_rope) is not None:
            wrong = "needs a sliding_window, and no unrotated_layers beside it"
            served = window is not None and not self.unrotated_layers
            require(served, "model.window_rope", wrong)
            alike = other.fraction == self.rope.fraction and other.kind != "longrope"
            wrong = "must have the fraction of rope, and a kind other than longrope"
            require(alike, "model.window_rope", wrong)
        not_negative("model", self, "score_dim")
        check_choices("model", self)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (paper appendix: rank 16, alpha 32, dropout 0.1, all linear).

    Attributes:
      rank: R.
      alpha: the update is scaled by ``alpha / rank``.
      dropout: share of an adapter's inputs dropped in training.
      layers: names of `LoraLayer`, or ``("all",)``; names that a backbone does
        not have are ignored, so one list serves fused and unfused models.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    layers: tuple[Literal["all", LoraLayer], ...] = ("all",)

    def __post_init__(self) -> None:
        positive("lora", self, "rank", "alpha")
        below_one("lora", self, "dropout")
        require(bool(self.layers), "lora.layers", "names no layer; use ('all',)")
        check_choices("lora", self)

    def covers(self, layer: str) -> bool:
        """Return whether the linear layer of this name carries an adapter."""
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
        positive("memory", self, "doc_max_length", "compression_rate")
        length, rate = self.doc_max_length, self.compression_rate
        none = f"{rate} leaves no memory token for documents of {length} tokens"
        require(rate <= length, "memory.compression_rate", none)

    @property
    def num_memory(self) -> int:
        """M, memory tokens per document."""
        return self.doc_max_length // self.compression_rate

    @property
    def num_special(self) -> int:
        """E, memory tokens and the markers AE, ENC, SEP."""
        return self.num_memory + 3

    def row_length(self, text: int) -> int:
        """Return the length of a row that the compressor reads of so much text."""
        return text + ROW_MARKS + self.num_memory


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
        positive("selection", self, "top_k")
        require(self.temperature >= 0, "selection.temperature", "must not be negative")
        check_choices("selection", self)
