"""GGUF files of llama.cpp: shape, weights (dequantized) and tokenizer.

llama.cpp stores the rows of q and k of Llama-family files in the order of interleaved
rotary pairs; this is undone here, as the backbone rotates halves.

Sources: ``gguf`` ``constants.py``; llama.cpp ``convert_hf_to_gguf.py`` (permutation)
and ``llama-vocab.cpp`` (pre-tokenizers; the patterns are those of the models' own
``tokenizer.json`` files).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, Keys, TokenType
from gguf.quants import dequantize
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from clara_jax.commands import note
from clara_jax.config import ModelConfig, RopeConfig
from clara_jax.convert.hf_config import Fields, filled
from clara_jax.convert.names import TensorName, gguf_tensors
from clara_jax.convert.tensors import build_tree, check_tensors
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, refuse_pointer
from clara_jax.shapes import Params

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
_PERMUTED = ("llama", "mistral")
_OTHER = "take a file of another quantization, such as Q8_0 or Q4_K_M"
_ROPE_TENSORS = ("rope_freqs", "rope_factors_short", "rope_factors_long")


def _opened(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """Return the tensors and the metadata of one file."""
    if not path.is_file():
        raise ClaraError(f"{path}: there is no such file")
    refuse_pointer(path)
    try:
        reader = GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
        return list(reader.tensors), values
    except Exception as error:
        why = first_line(error)
        text = f"is truncated or not a GGUF file ({why}); fetch it again"
        if kind := re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", why):
            text = f"has a tensor of the unknown type {kind[1]}; {_OTHER}"
        raise ClaraError(f"{path}: {text}") from error


class GgufFile:
    """One opened file; a missing, damaged or unsupported one is refused.

    Of a model in several files, such as ``x-00001-of-00002.gguf``, `path` is the first.
    """

    def __init__(self, path: Path):
        self.path = path
        tensors, values = _opened(path)
        others = self._other_parts(values)
        for other in others:
            tensors += _opened(other)[0]
        self._tensors = {tensor.name: tensor for tensor in tensors}
        count = values.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT)
        if others and count not in (None, len(self._tensors)):
            raise self._error(
                f"its {len(others) + 1} parts hold {len(self._tensors)} tensors "
                f"instead of {count}; fetch all of them again"
            )
        self._fields = Fields(values, f"{path}: metadata")
        kind = self._architecture = self._fields.get("general.architecture", str)
        if kind not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise self._error(f"unknown architecture '{kind}'; supported are {known}")

    def _error(self, text: str) -> ClaraError:
        return ClaraError(f"{self.path}: {text}")

    def _other_parts(self, values: dict[str, Any]) -> list[Path]:
        """Return the further files of a model that is split into several."""
        count = values.get(Keys.Split.LLM_KV_SPLIT_COUNT) or 1
        if count == 1:
            return []
        end = f"-of-{count:05}{self.path.suffix}"
        start = self.path.name.removesuffix(end)[:-6]
        first, *others = (
            self.path.with_name(f"{start}-{i + 1:05}{end}") for i in range(count)
        )
        number = values.get(Keys.Split.LLM_KV_SPLIT_NO) or 0
        if self.path.name != f"{start}-{number + 1:05}{end}":
            raise self._error(
                f"is part {number + 1} of {count}, but is not called so; the name must "
                f"end in -{number + 1:05}{end}"
            )
        if number:
            raise self._error(
                f"is part {number + 1} of {count}; give the first, {first}"
            )
        for path in others:
            if not path.is_file():
                raise self._error(
                    f"is the first of {count} parts, of which {path.name} is missing; "
                    "fetch it, too"
                )
        return others

    @property
    def name(self) -> str:
        """Architecture and the name that the file gives itself."""
        name = self._fields.get("general.name", str, "")
        return f"{self._architecture} {name}".strip()

    def config(self, param_dtype: str = "") -> ModelConfig:
        """Return the backbone's shape, from metadata and the names of tensors.

        Weights are kept in `param_dtype`, or else in bfloat16 for a bfloat16 file and
        in float32 for all others.
        """
        if self._whole("expert_count", 0):
            raise self._error("mixtures of experts are not supported")
        width = self._whole("embedding_length")
        heads = self._whole("attention.head_count")
        head_dim = self._whole("attention.key_length", 0) or width // max(heads, 1)
        kinds = {tensor.tensor_type for tensor in self._tensors.values()}
        stored = "bfloat16" if GGMLQuantizationType.BF16 in kinds else "float32"
        dtype: Any = param_dtype or stored
        # As its shortest decimal: 1e-05, not 9.999999747e-06.
        epsilon = np.float32(self._number("attention.layer_norm_rms_epsilon"))
        window = self._whole("attention.sliding_window", 0)
        return ModelConfig(
            vocab_size=self._shape("token_embd.weight")[0],
            width=width,
            num_layers=self._whole("block_count"),
            num_heads=heads,
            num_kv_heads=self._whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            mlp_dim=self._whole("feed_forward_length"),
            norm_eps=float(str(epsilon)),
            tied="output.weight" not in self._tensors,
            qkv_bias=self._has("attn_q.bias") or self._has("attn_qkv.bias"),
            output_bias=self._has("attn_output.bias"),
            mlp_bias=self._has("ffn_down.bias"),
            qk_norm=self._has("attn_q_norm.weight"),
            fused_qkv=self._has("attn_qkv.weight"),
            fused_gate_up=not self._has("ffn_gate.weight"),
            sliding_window=window if window and self._architecture == "phi3" else None,
            rope=self._rope(head_dim),
            param_dtype=dtype,
        )

    def params(self, config: ModelConfig) -> Params:
        """Dequantize the weights into our tree, tensor by tensor.

        Raises:
          ClaraError: a tensor is missing, unexpected, of a wrong shape, or of a type
            that cannot be dequantized.
        """
        tensors = gguf_tensors(config)
        names = [n for n in self._tensors if n.split(".")[0] not in _ROPE_TENSORS]
        check_tensors(tensors, {n: self._shape(n) for n in names}, self.path)
        for name in {self._tensor(n).tensor_type: n for n in names}.values():
            self._dequantized(name, slice(1))  # before much is read
        heads = {"query": config.num_heads, "key": config.num_kv_heads}

        def read(tensor: TensorName) -> np.ndarray:
            array, count = self._read(tensor.name), heads.get(tensor.path[-2])
            if count is None or self._architecture not in _PERMUTED:
                return array
            pairs = array.reshape(count, config.head_dim // 2, 2, *array.shape[1:])
            return pairs.swapaxes(1, 2).reshape(array.shape)

        return build_tree(tensors, read, config.param_dtype)

    def tokenizer(self) -> Any:
        """Return the tokenizer, rebuilt from the metadata."""
        return build_tokenizer(self._fields)

    def eos_ids(self) -> tuple[int, ...]:
        """Return ids that end an answer."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        ids = (self._fields.get(key, int, -1) for key in keys)
        return tuple(dict.fromkeys(i for i in ids if i >= 0))

    def _whole(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default))

    def _number(self, key: str, default: int | float | None = None) -> float:
        fields, name = self._fields, f"{self._architecture}.{key}"
        value = fields.values.get(name)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self._error(
                    f"'{name}' differs between layers; all layers must be alike"
                )
            fields = Fields({name: value[0]}, fields.where)
        return float(fields.get(name, float, default))

    def _has(self, name: str) -> bool:
        return f"blk.0.{name}" in self._tensors

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise self._error(f"tensor '{name}' is missing")
        return self._tensors[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(n) for n in reversed(self._tensor(name).shape))

    def _read(self, name: str) -> np.ndarray:
        return self._dequantized(name, slice(None)).reshape(self._shape(name))

    def _dequantized(self, name: str, rows: slice) -> np.ndarray:
        tensor = self._tensor(name)
        try:
            return dequantize(tensor.data[rows], tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise self._error(
                f"tensor '{name}' has type {kind}, which cannot be read; {_OTHER}"
            ) from error

    def _divisors(self, name: str) -> tuple[float, ...]:
        return tuple(self._read(f"{name}.weight").ravel().tolist())

    def _rope(self, head_dim: int) -> RopeConfig:
        longest = self._whole("context_length")
        original = self._whole("rope.scaling.original_context_length", longest)
        kind = self._fields.get(f"{self._architecture}.rope.scaling.type", str, "none")
        factor = self._number("rope.scaling.factor", 0.0)
        rope: dict[str, Any] = {
            "theta": self._number("rope.freq_base", 10000.0),
            "fraction": (self._whole("rope.dimension_count", 0) or head_dim) / head_dim,
            "max_position": longest,
        }
        if "rope_freqs.weight" in self._tensors:
            # The divisors of llama3, worked out by the converter.
            divisors = self._divisors("rope_freqs")
            rope |= {"short_factors": divisors, "long_factors": divisors}
            rope |= {"factor": 1.0, "original_max_position": longest}
            return RopeConfig(kind="longrope", attention_factor=1.0, **rope)
        if "rope_factors_long.weight" in self._tensors:
            for name in ("short", "long"):
                rope[f"{name}_factors"] = self._divisors(f"rope_factors_{name}")
            rope |= {"factor": longest / original, "original_max_position": original}
            given = self._number("rope.scaling.attn_factor", 0.0)
            return filled(RopeConfig(kind="longrope", attention_factor=given, **rope))
        if kind in ("linear", "yarn") and factor:
            rope |= {"kind": kind, "factor": factor}
            if kind == "yarn":
                rope["original_max_position"] = original
        elif kind != "none":
            raise self._error(f"rope scaling '{kind}' is not supported")
        return RopeConfig(**rope)


_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = _BEFORE + r"\p{L}+", stop: str = "") -> str:
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n" + stop + "]*"
    return "|".join((letters, digits, signs, _SPACES))


def _cased(ending: str) -> str:
    """Return a pattern of words, cut where lower case is followed by upper case."""
    return f"{_BEFORE}{_UPPER}*{_LOWER}+{ending}|{_BEFORE}{_UPPER}+{_LOWER}*{ending}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_SHORT}|" + _words(r"\p{N}{1,3}")
_QWEN2 = f"{_SHORT}|" + _words(r"\p{N}")
_GPT4O = _words(r"\p{N}{1,3}", _cased(f"{_SHORT}?"), "/")
_TEKKEN = _words(r"\p{N}", _cased(""), "/")

_PATTERNS: dict[str, tuple[str, ...]] = {
    name: patterns
    for names, patterns in (
        ("default", (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
        ("gpt-2 mpt olmo phi-2 jais trillion granite-docling", (_GPT2,)),
        ("smollm starcoder refact command-r codeshell exaone", (r"\p{N}", _GPT2)),
        ("llama3 llama-v3 llama-bpe falcon3 dbrx smaug-bpe", (_LLAMA3,)),
        ("qwen2 deepseek-r1-qwen stablelm2 hunyuan", (_QWEN2,)),
        ("gpt-4o llama4", (_GPT4O,)),
        ("tekken", (_TEKKEN,)),
    )
    for name in names.split()
}
"""Splits made one after the other before bytes are merged, by pre-tokenizer."""

_WHOLE_WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"}
_QWEN_ROLES = ("<|im_start|>", "<|im_end|>")


def build_tokenizer(fields: Fields) -> Any:
    """Build a ``PreTrainedTokenizerFast``, with special tokens and chat template.

    Tokens that only pad the vocabulary (type "unused", at its end) are left out, so
    that its length is that of the original tokenizer.

    Raises:
      ClaraError: the tokenizer or pre-tokenizer is of an unknown kind, or a field is
        missing.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = list(fields.required("tokenizer.ggml.tokens"))
    types = fields.values.get("tokenizer.ggml.token_type")
    types = list(types or [TokenType.NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise fields.error("tokenizer.ggml.token_type has a wrong length")
    while types and types[-1] == TokenType.UNUSED:
        del tokens[-1], types[-1]
    model = fields.get("tokenizer.ggml.model", str)
    pre = fields.get("tokenizer.ggml.pre", str, "default")
    try:
        if model == "gpt2":
            tokenizer = _byte_level(fields, tokens, pre)
        elif model == "llama":
            tokenizer = _sentencepiece(fields, tokens, types)
        else:
            raise fields.error(
                f"tokenizer model '{model}' is not supported; gpt2 (byte-level BPE) "
                "and llama (SentencePiece) are"
            )
    except ClaraError:
        raise
    except Exception as error:
        raise fields.error(f"the tokenizer is damaged ({first_line(error)})") from error
    # Matched whole in the text: control tokens, and those that users have defined.
    for token, kind in zip(tokens, types, strict=True):
        added = AddedToken(token, normalized=False)
        if kind in (TokenType.UNKNOWN, TokenType.CONTROL):
            tokenizer.add_special_tokens([added])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([added])
    special: dict[str, Any] = {}
    for name in ("bos", "eos", "unknown", "padding"):
        index = fields.get(f"tokenizer.ggml.{name}_token_id", int, -1)
        if index >= len(tokens):
            raise fields.error(f"its {name} token {index} is not in its vocabulary")
        if index >= 0:
            special[f"{name[:3]}_token"] = tokens[index]  # unk_token, pad_token
    begins = fields.values.get("tokenizer.ggml.add_bos_token", model == "llama")
    if pre == "qwen2" and not begins:
        # Qwen's own tokenizer has no bos; llama.cpp fills the field all the same.
        special.pop("bos_token", None)
        special["additional_special_tokens"] = [t for t in _QWEN_ROLES if t in tokens]
    if begins and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, tokens.index(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields.values.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level(fields: Fields, tokens: list[str], pre: str) -> Tokenizer:
    if pre not in _PATTERNS:
        known = ", ".join(sorted(_PATTERNS))
        raise fields.error(f"pre-tokenizer '{pre}' is not known; known are {known}")
    if pre == "default":
        note(
            f"{fields.where}: names no pre-tokenizer; texts are cut as llama.cpp does "
            "by default, which may not be as the model was trained"
        )
    merges = [tuple(m.split(" ", 1)) for m in fields.required("tokenizer.ggml.merges")]
    for merge in merges:
        if len(merge) != 2 or not all(merge):
            raise fields.error(f"the merge {' '.join(merge)!r} is damaged")
    ids = {token: i for i, token in enumerate(tokens)}
    whole = pre in _WHOLE_WORDS_FIRST
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in _PATTERNS[pre]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Fields, tokens: list[str], types: list[Any]) -> Tokenizer:
    """Return BPE whose merges are all ways to join two pieces, best score first."""
    scores = fields.required("tokenizer.ggml.scores")
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = []
    for token, kind, score in zip(tokens, types, scores, strict=False):
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in ids and right in ids:
                    ranked.append((-score, ids[left], ids[right], left, right))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in sorted(ranked)],
            unk_token=tokens[fields.get("tokenizer.ggml.unknown_token_id", int, 0)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    before: list[Any] = [normalizers.Replace(" ", "▁")]
    after = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.values.get("tokenizer.ggml.add_space_prefix", True):
        before.insert(0, normalizers.Prepend("▁"))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(after)
    return tokenizer
