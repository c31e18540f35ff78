"""A tokenizer rebuilt from the metadata of a GGUF file.

Sources: llama.cpp ``llama-vocab.cpp`` for what the names of pre-tokenizers mean; the
patterns are those of the models' own ``tokenizer.json`` files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

from clara_jax.errors import ClaraError
from clara_jax.files import first_line

_UNKNOWN, _CONTROL, _USER, _UNUSED = 2, 3, 4, 5
"""Values of ``tokenizer.ggml.token_type`` that are no ordinary text (6: a byte)."""

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = _BEFORE + r"\p{L}+", stop: str = "") -> str:
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n" + stop + "]*"
    return "|".join((letters, digits, signs, _SPACES))


def _cased(ending: str) -> str:
    """Words that start a new piece where the case goes up again."""
    return f"{_BEFORE}{_UPPER}*{_LOWER}+{ending}|{_BEFORE}{_UPPER}+{_LOWER}*{ending}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{_SHORT}|" + _words(r"\p{N}{1,3}")
_QWEN2 = f"{_SHORT}|" + _words(r"\p{N}")
_GPT4O = _words(r"\p{N}{1,3}", _cased(f"{_SHORT}?"), "/")
_TEKKEN = _words(r"\p{N}", _cased(""), "/")

_PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **dict.fromkeys(
        ("gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion", "granite-docling"),
        (_GPT2,),
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
        (r"\p{N}", _GPT2),
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"),
        (_LLAMA3,),
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"), (_QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
}
"""Splits made one after the other before bytes are merged, by pre-tokenizer."""

_WHOLE_WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"}


_QWEN_ROLES = ("<|im_start|>", "<|im_end|>")


def build_tokenizer(values: Mapping[str, Any], where: str) -> Any:
    """Build a tokenizer.

    Args:
      values: metadata below ``tokenizer.`` (``ggml.model``, ``ggml.tokens``, ...).
      where: the file, for errors.

    Returns:
      A ``PreTrainedTokenizerFast`` with special tokens and chat template. Tokens that
      only pad the vocabulary (type "unused", at its end) are left out, so that its
      length is that of the original tokenizer.

    Raises:
      ClaraError: a kind of tokenizer or pre-tokenizer that is not known, or a missing
        field.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = list(_field(values, "ggml.tokens", where))
    types = list(values.get("ggml.token_type") or [1] * len(tokens))
    if len(types) != len(tokens):
        raise ClaraError(f"{where}: tokenizer.ggml.token_type has a wrong length")
    while types and types[-1] == _UNUSED:
        del tokens[-1], types[-1]
    model = str(_field(values, "ggml.model", where))
    if model not in _MODELS:
        raise ClaraError(
            f"{where}: tokenizer model '{model}' is not supported; gpt2 (byte-level "
            "BPE) and llama (SentencePiece) are"
        )
    try:
        tokenizer = _MODELS[model](values, tokens, types, where)
    except ClaraError:
        raise
    except Exception as error:
        raise ClaraError(
            f"{where}: the tokenizer is damaged ({first_line(error)})"
        ) from error
    _add_tokens(tokenizer, tokens, types)

    def named(key: str) -> str | None:
        index = values.get(f"ggml.{key}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ClaraError(
                f"{where}: metadata field 'tokenizer.ggml.{key}_token_id' is no token "
                f"id: {index!r}"
            )
        return tokens[index]

    special: dict[str, Any] = {
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
    }
    begins = values.get("ggml.add_bos_token", model == "llama")
    if str(values.get("ggml.pre")) == "qwen2" and not begins:
        # Qwen's own tokenizer has no bos; llama.cpp fills the field all the same.
        special["bos_token"] = None
        special["additional_special_tokens"] = [t for t in _QWEN_ROLES if t in tokens]
    if begins and special["bos_token"]:
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, tokens.index(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=values.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{key: token for key, token in special.items() if token},
    )


def _byte_level(
    values: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> Tokenizer:
    del types
    pre = str(values.get("ggml.pre", "default"))
    if pre not in _PATTERNS:
        raise ClaraError(
            f"{where}: pre-tokenizer '{pre}' is not known; "
            f"known are {', '.join(sorted(_PATTERNS))}"
        )
    merges = [_pair(line, where) for line in _field(values, "ggml.merges", where)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre in _WHOLE_WORDS_FIRST,
        )
    )
    splits = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[pre]
    ]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    values: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> Tokenizer:
    """BPE whose merges are all ways to join two pieces, best score first."""
    scores = list(_field(values, "ggml.scores", where))
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = []
    for token, kind, score in zip(tokens, types, scores, strict=False):
        if kind not in (1, _USER):
            continue
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right, token[:cut], token[cut:]))
    ranked.sort()
    unknown = values.get("ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for *_, left, right in ranked],
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(values.get("ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    ends: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *ends,
        ]
    )
    return tokenizer


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens matched whole in the text: control (special) and user-defined ones."""
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == _USER:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])


def _field(values: Mapping[str, Any], key: str, where: str) -> Any:
    if values.get(key) is None:
        raise ClaraError(f"{where}: metadata field 'tokenizer.{key}' is missing")
    return values[key]


def _pair(line: str, where: str) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not space or not left or not right:
        raise ClaraError(f"{where}: the merge {line!r} is damaged")
    return left, right
