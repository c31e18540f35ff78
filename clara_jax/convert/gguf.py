"""GGUF files of llama.cpp: shape, weights (dequantized) and tokenizer.

Tensors are dequantized one by one into the allocated tree. llama.cpp stores the rows
of q and k of Llama-family files in the order of interleaved rotary pairs; this is
undone here, as the backbone rotates halves.

Sources: ``gguf`` ``constants.py``; llama.cpp ``convert_hf_to_gguf.py`` (permutation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert.gguf_tokenizer import build_tokenizer
from clara_jax.convert.hf import Progress, numpy_dtype, quiet
from clara_jax.convert.hf_config import longrope_attention_factor
from clara_jax.convert.names import TensorName, TreeBuilder, gguf_tensors
from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.shapes import Params

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
_PERMUTED = ("llama", "mistral")
_ROPE_TENSORS = ("rope_freqs", "rope_factors_short", "rope_factors_long")


class GgufFile:
    """One opened file.

    Args:
      path: the file.

    Raises:
      ClaraError: it is missing, truncated, no GGUF file, or of an architecture that
        the backbone does not have.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise ClaraError(f"{path}: there is no such file")
        try:
            reader = GGUFReader(path)
        except Exception as error:
            raise ClaraError(
                f"{path}: is truncated or no GGUF file ({first_line(error)}); "
                "fetch it again"
            ) from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = str(self.value("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise ClaraError(
                f"{path}: unknown architecture '{self.architecture}'; "
                f"supported are {', '.join(ARCHITECTURES)}"
            )

    @property
    def name(self) -> str:
        """Architecture and the name that the file gives itself."""
        return f"{self.architecture} {self.value('general.name', '')}".strip()

    def value(self, key: str, default: Any = None) -> Any:
        """One metadata value; without a default it must be there."""
        field = self._fields.get(key)
        if field is None:
            if default is None:
                raise ClaraError(f"{self.path}: metadata field '{key}' is missing")
            return default
        return field.contents()

    def config(self, param_dtype: str = "") -> ModelConfig:
        """The backbone's shape, from metadata and the names of tensors.

        Args:
          param_dtype: type to keep weights in; empty takes bfloat16 for a bfloat16
            file and float32 for all others.
        """
        if self._whole("expert_count", 0):
            raise ClaraError(f"{self.path}: mixtures of experts are not supported")
        if "token_embd.weight" not in self._tensors:
            raise ClaraError(f"{self.path}: tensor 'token_embd.weight' is missing")
        width = self._whole("embedding_length")
        heads = self._whole("attention.head_count")
        rotated = self._whole("rope.dimension_count", 0)
        head_dim = self._whole("attention.key_length", 0) or width // max(heads, 1)
        embedding = self._tensors["token_embd.weight"]
        stored_bf16 = any(
            tensor.tensor_type == GGMLQuantizationType.BF16
            for tensor in self._tensors.values()
        )
        window = self._whole("attention.sliding_window", 0)
        return ModelConfig(
            vocab_size=int(embedding.shape[1]),
            width=width,
            num_layers=self._whole("block_count"),
            num_heads=heads,
            num_kv_heads=self._whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            mlp_dim=self._whole("feed_forward_length"),
            norm_eps=_short(self._number("attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in self._tensors,
            qkv_bias=self._has("attn_q.bias") or self._has("attn_qkv.bias"),
            output_bias=self._has("attn_output.bias"),
            mlp_bias=self._has("ffn_down.bias"),
            qk_norm=self._has("attn_q_norm.weight"),
            fused_qkv=self._has("attn_qkv.weight"),
            fused_gate_up=not self._has("ffn_gate.weight"),
            sliding_window=window if window and self.architecture == "phi3" else None,
            rope=self._rope(rotated or head_dim, head_dim),
            param_dtype=param_dtype or ("bfloat16" if stored_bf16 else "float32"),
        )

    def params(self, config: ModelConfig, progress: Progress = quiet) -> Params:
        """Dequantize the weights into our tree, tensor by tensor.

        Raises:
          ClaraError: a tensor is missing, unexpected, of a wrong shape or of a type
            that cannot be dequantized.
        """
        builder = TreeBuilder(
            gguf_tensors(config), numpy_dtype(config.param_dtype), str(self.path)
        )
        names = [n for n in self._tensors if n.split(".")[0] not in _ROPE_TENSORS]
        for name in names:
            builder.check(name, self._shape(name))
        for name in progress(names, len(names)):
            array = self._read(name)
            if self.architecture in _PERMUTED:
                array = _unpermuted(array, builder.wanted[name], config)
            builder.put(name, array)
        return builder.finish()

    def tokenizer(self) -> Any:
        """The tokenizer, rebuilt from the metadata."""
        prefix = "tokenizer."
        values = {
            key.removeprefix(prefix): field.contents()
            for key, field in self._fields.items()
            if key.startswith(prefix)
        }
        return build_tokenizer(values, str(self.path))

    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        ids = (self.value(key, -1) for key in keys)
        return tuple(dict.fromkeys(i for i in ids if i >= 0))

    def _whole(self, key: str, default: int | None = None) -> int:
        return int(self._plain(key, default))

    def _number(self, key: str, default: float | None = None) -> float:
        return float(self._plain(key, default))

    def _plain(self, key: str, default: Any) -> Any:
        key = f"{self.architecture}.{key}"
        value = self.value(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ClaraError(
                    f"{self.path}: '{key}' differs between layers; "
                    "all layers must be alike"
                )
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ClaraError(f"{self.path}: '{key}' must be a number, not {value!r}")
        return value

    def _has(self, name: str) -> bool:
        return f"blk.0.{name}" in self._tensors

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ClaraError(
                f"{self.path}: tensor '{name}' has type {tensor.tensor_type.name}, "
                "which cannot be dequantized"
            ) from error
        return array.reshape(self._shape(name))

    def _rope(self, rotated: int, head_dim: int) -> RopeConfig:
        longest = self._whole("context_length")
        kind = str(self.value(f"{self.architecture}.rope.scaling.type", "none"))
        original = self._whole("rope.scaling.original_context_length", longest)
        factor = self._number("rope.scaling.factor", 0.0)
        common = {
            "theta": self._number("rope.freq_base", 10000.0),
            "fraction": rotated / head_dim,
            "max_position": longest,
        }
        if "rope_freqs.weight" in self._tensors:
            # The divisors of llama3, worked out by the converter.
            divisors = self._divisors("rope_freqs.weight")
            return RopeConfig(
                kind="longrope",
                factor=1.0,
                original_max_position=longest,
                short_factors=divisors,
                long_factors=divisors,
                attention_factor=1.0,
                **common,
            )
        if "rope_factors_long.weight" in self._tensors:
            factor = longest / original
            return RopeConfig(
                kind="longrope",
                factor=factor,
                original_max_position=original,
                short_factors=self._divisors("rope_factors_short.weight"),
                long_factors=self._divisors("rope_factors_long.weight"),
                attention_factor=self._number("rope.scaling.attn_factor", 0.0)
                or longrope_attention_factor(factor, original),
                **common,
            )
        if kind == "none":
            return RopeConfig(**common)
        if kind == "linear" and factor:
            return RopeConfig(kind="linear", factor=factor, **common)
        if kind == "yarn" and factor:
            return RopeConfig(
                kind="yarn", factor=factor, original_max_position=original, **common
            )
        raise ClaraError(f"{self.path}: rope scaling '{kind}' is not supported")

    def _divisors(self, name: str) -> tuple[float, ...]:
        if name not in self._tensors:
            raise ClaraError(f"{self.path}: tensor '{name}' is missing")
        return tuple(float(value) for value in self._read(name).reshape(-1))


def _unpermuted(
    array: np.ndarray, tensor: TensorName, config: ModelConfig
) -> np.ndarray:
    """Rows of q and k, from interleaved rotary pairs back to halves."""
    heads = {"query": config.num_heads, "key": config.num_kv_heads}
    count = heads.get(tensor.path[-2])
    if count is None:
        return array
    pairs = array.reshape(count, config.head_dim // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))
