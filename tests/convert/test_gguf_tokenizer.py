import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from clara_jax.convert.gguf import build_tokenizer
from clara_jax.convert.hf_config import Fields
from clara_jax.errors import ClaraError

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 times faster!",
    "  Leading spaces,\ttabs\n\nand   new lines... and don't forget CamelCaseWords",
    "Ünïcödé: déjà vu, 東京 and 🙂🙂; 3.14159 != 2,718",
    "def f(x):\n    return x**2  # code\n",
]
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def _train(tokenizer, trainer):
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def _byte_level(pre_tokenizer):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _train(tokenizer, trainer)


def _metadata(tokenizer, **more):
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "ggml.model": "gpt2",
        "ggml.tokens": vocabulary,
        "ggml.token_type": [3 if t[0] == "<" and t[1:] else 1 for t in vocabulary],
        "ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
        "ggml.padding_token_id": 2,
        "chat_template": TEMPLATE,
        **more,
    }


def _build(metadata, where="f"):
    values = {f"tokenizer.{key}": value for key, value in metadata.items()}
    return build_tokenizer(Fields(values, where))


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_byte_level_ids(name):
    original = _byte_level(SPLITS[name])
    rebuilt = _build(_metadata(original, **{"ggml.pre": name}))
    for text in TEXTS:
        ids = _ids(rebuilt, text)
        assert ids == original.encode(text, add_special_tokens=False).ids
        assert rebuilt.decode(ids) == text


@pytest.mark.parametrize("name", ["llama-bpe", "gpt-4o", "tekken", "default", "mpt"])
def test_other_splits_round_trip(name):
    original = _byte_level(SPLITS["gpt-2"])
    rebuilt = _build(_metadata(original, **{"ggml.pre": name}))
    for text in TEXTS:
        assert rebuilt.decode(_ids(rebuilt, text)) == text
    split = rebuilt.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a12345 CamelCase")
    pieces = [piece for piece, _ in split]
    if name == "llama-bpe":
        assert pieces == ["a", "123", "45", "ĠCamelCase"]
    if name == "gpt-4o":
        assert pieces == ["a", "123", "45", "ĠCamel", "Case"]


def test_special_tokens_and_template():
    metadata = _metadata(_byte_level(SPLITS["gpt-2"]), **{"ggml.pre": "gpt-2"})
    plain = _build(metadata)
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == (
        "<s>",
        "</s>",
        "<pad>",
    )
    assert plain("a")["input_ids"] == _ids(plain, "a")
    with_bos = _build({**metadata, "ggml.add_bos_token": True})
    assert with_bos("a")["input_ids"] == [0, *_ids(plain, "a")]
    chat = plain.apply_chat_template([{"content": "hi"}], tokenize=False)
    assert chat == "<s>hi</s>"
    assert _ids(plain, chat) == [0, *_ids(plain, "hi"), 1]
    assert plain.decode(_ids(plain, chat), skip_special_tokens=True) == "hi"


def test_padding_of_the_vocabulary_is_left_out():
    metadata = _metadata(_byte_level(SPLITS["gpt-2"]), **{"ggml.pre": "gpt-2"})
    length = len(metadata["ggml.tokens"])
    metadata["ggml.tokens"] = [*metadata["ggml.tokens"], "[PAD1]", "[PAD2]"]
    metadata["ggml.token_type"] = [*metadata["ggml.token_type"], 5, 5]
    assert len(_build(metadata)) == length


def test_sentencepiece_ids():
    original = tokenizers.Tokenizer(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    original.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    original.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *raw],
        limit_alphabet=60,
        max_token_length=8,
        show_progress=False,
    )
    _train(original, trainer)
    model = json.loads(original.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    types = [2, 3, 3, *[6] * 256, *[1] * (len(vocabulary) - 259)]
    metadata = {
        "ggml.model": "llama",
        "ggml.tokens": vocabulary,
        "ggml.token_type": types,
        "ggml.scores": [-float(i) for i in range(len(vocabulary))],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }
    rebuilt = _build(metadata)
    for text in [*TEXTS, "strange: ☃ ẞ"]:
        ids = _ids(rebuilt, text)
        assert 0 not in ids
        assert rebuilt.decode(ids) == text
    # The trained merges rank joins as scores do wherever pieces are joined one way.
    words = "The quick brown fox jumps over the lazy dog"
    assert _ids(rebuilt, words) == original.encode(words, add_special_tokens=False).ids
    assert rebuilt("a")["input_ids"][0] == 1


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"ggml.model": "bert"}, "tokenizer model 'bert' is not supported"),
        ({"ggml.pre": "odd"}, "pre-tokenizer 'odd' is not known"),
        ({"ggml.merges": None}, "'tokenizer.ggml.merges' is missing"),
        ({"ggml.merges": ["ab"]}, "the merge 'ab' is damaged"),
        ({"ggml.merges": ["☃ ☃"]}, "the tokenizer is damaged .*out of vocabulary"),
        ({"ggml.tokens": None}, "'tokenizer.ggml.tokens' is missing"),
        ({"ggml.token_type": [1]}, "token_type has a wrong length"),
        ({"ggml.model": "llama"}, "'tokenizer.ggml.scores' is missing"),
    ],
)
def test_refusals(changes, pattern):
    metadata = _metadata(_byte_level(SPLITS["gpt-2"]), **changes)
    with pytest.raises(ClaraError, match=pattern) as caught:
        _build(metadata, "model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
