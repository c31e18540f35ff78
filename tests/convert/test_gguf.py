import json

import gguf
import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from clara_jax.convert import load_config, load_model
from clara_jax.convert.gguf import GgufFile, build_tokenizer
from clara_jax.convert.hf_config import Fields, model_config_from_hf
from clara_jax.convert.names import gguf_tensors
from clara_jax.convert.tensors import extract
from clara_jax.errors import ClaraError

WIDTH, HEADS, KV_HEADS, LAYERS, MLP, VOCAB = 256, 4, 2, 2, 512, 41


def _values(arch, **changes):
    return {
        "architectures": [f"{arch}ForCausalLM"],
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": MLP,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "head_dim": None,
        "sliding_window": None,
        **changes,
    }


def _blocks(shape, kind, rng):
    """Random blocks of a type that gguf can only read; scales are kept small."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
    scales = slice(0, 4) if kind == Kind.Q4_K else slice(size - 2, size)
    count = (scales.stop - scales.start) // 2
    small = rng.uniform(0.01, 0.1, (*raw.shape[:-1], count)).astype(np.float16)
    raw[..., scales] = small.view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def _write(
    path, config, arch, kind=Kind.F32, *, change=None, extra=(), skip=(), split=0
):
    """Write a file with random weights; returns what they dequantize to."""
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    numbers = {
        "block_count": config.num_layers,
        "context_length": 64,
        "embedding_length": config.width,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        **(change or {}),
    }
    for key, value in numbers.items():
        if isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 5000.0)
    tokens = ["t", "1", *(f"t{i}" for i in range(1, VOCAB - 1))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    rng, expected = np.random.default_rng(0), {}
    for tensor in gguf_tensors(config):
        if tensor.name in skip:
            continue
        array = rng.normal(size=tensor.shape).astype(np.float32)
        if len(tensor.shape) == 1 or kind == Kind.F32:
            writer.add_tensor(tensor.name, array)
        else:
            if kind in (Kind.Q4_K, Kind.Q6_K):
                raw = _blocks(tensor.shape, kind, rng)
            else:
                raw = quantize(array, kind)
            array = dequantize(raw, kind)
            if kind == Kind.F16:
                writer.add_tensor(tensor.name, raw)
            else:
                writer.add_tensor(tensor.name, raw, raw_dtype=kind)
        expected[tensor.name] = array
    for name, array in extra:
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _interleaved(array, heads):
    """What llama.cpp's converter does to the rows of q and k of Llama files."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _config(arch, **changes):
    return model_config_from_hf(_values(arch, **changes), "")


@pytest.mark.parametrize(
    "kind",
    [
        *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1),
        *(Kind.Q4_K, Kind.Q6_K),
    ],
    ids=lambda kind: kind.name,
)
def test_types(tmp_path, kind):
    path = tmp_path / "model.gguf"
    expected = _write(path, _config("Qwen2"), "qwen2", kind)
    model = load_model(path)
    wide = "bfloat16" if kind == Kind.BF16 else "float32"
    assert model.config.param_dtype == wide and model.eos_ids == (2,)
    for tensor in gguf_tensors(model.config):
        array = extract(model.params, tensor).astype(np.float32)
        assert np.all(np.isfinite(array))
        limit = 0.01 if kind == Kind.BF16 else 0
        np.testing.assert_allclose(array, expected[tensor.name], rtol=limit)


@pytest.mark.parametrize(
    ("arch", "family", "changes"),
    [
        ("llama", "Llama", {"tie_word_embeddings": True}),
        ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", "Qwen3", {}),
        ("phi3", "Phi3", {}),
    ],
)
def test_architectures(tmp_path, arch, family, changes):
    path = tmp_path / "model.gguf"
    config = _config(family, **changes)
    lengths = {"attention.key_length": config.head_dim}
    expected = _write(path, config, arch, change=lengths)
    model = load_model(path)
    rope = {"theta": 5000.0, "max_position": 64}
    for name in ("tied", "qkv_bias", "output_bias", "mlp_bias", "qk_norm", "head_dim"):
        assert getattr(model.config, name) == getattr(config, name), name
    assert (model.config.fused_qkv, model.config.norm_eps) == (config.fused_qkv, 1e-5)
    assert (model.config.rope.theta, model.config.rope.max_position) == (
        rope["theta"],
        rope["max_position"],
    )
    for tensor in gguf_tensors(config):
        array = extract(model.params, tensor)
        heads = {"query": HEADS, "key": KV_HEADS}.get(tensor.path[-2])
        if arch == "llama" and heads:
            array = _interleaved(array, heads)
        np.testing.assert_array_equal(array, expected[tensor.name])


def test_rope_kinds(tmp_path):
    path = tmp_path / "model.gguf"

    def read(arch="llama", family="Llama", extra=(), **change):
        change = {key.replace("__", "."): value for key, value in change.items()}
        _write(path, _config(family), arch, change=change, extra=extra)
        return load_config(path).rope

    half = np.linspace(1, 4, 32, dtype=np.float32)
    llama3 = read(extra=[("rope_freqs.weight", half)])
    assert llama3.short_factors == llama3.long_factors == tuple(half.tolist())
    assert llama3.attention_factor == 1
    linear = read(rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert (linear.kind, linear.factor) == ("linear", 2)
    yarn = read(
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=16,
    )
    assert (yarn.kind, yarn.factor, yarn.original_max_position) == ("yarn", 4, 16)
    phi = read(
        arch="phi3",
        family="Phi3",
        extra=[
            ("rope_factors_long.weight", half[:24] * 2),
            ("rope_factors_short.weight", half[:24]),
        ],
        rope__dimension_count=48,
        rope__scaling__original_context_length=16,
        rope__scaling__attn_factor=1.5,
    )
    assert (phi.kind, phi.fraction, phi.factor) == ("longrope", 0.75, 4)
    assert phi.long_factors == tuple((half[:24] * 2).tolist())
    assert phi.attention_factor == 1.5
    with pytest.raises(ClaraError, match="rope scaling 'odd' is not supported"):
        read(rope__scaling__type="odd")


def test_refusals(tmp_path):
    path = tmp_path / "model.gguf"
    config = _config("Llama")

    def fails(pattern, arch="llama", **options):
        _write(path, config, arch, **options)
        with pytest.raises(ClaraError, match=pattern) as caught:
            load_model(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    fails("unknown architecture 'gemma'", arch="gemma")
    fails("'blk.1.ffn_up.weight' is missing", skip=("blk.1.ffn_up.weight",))
    fails("'token_embd.weight' is missing", skip=("token_embd.weight",))
    odd = np.zeros(3, np.float32)
    fails("'blk.0.odd.weight' is not expected", extra=[("blk.0.odd.weight", odd)])
    fails(r"'blk.0.ffn_gate.weight' has shape", change={"feed_forward_length": 256})
    fails("'llama.block_count' is missing", change={"block_count": None})
    fails("'llama.block_count' must be a number", change={"block_count": "two"})
    per_layer = {"attention.head_count_kv": [2, 4]}
    fails("'llama.attention.head_count_kv' differs", change=per_layer)
    fails("mixtures of experts", change={"expert_count": 8})


def test_damaged_files(tmp_path):
    path = tmp_path / "model.gguf"
    _write(path, _config("Llama"), "llama")
    data = path.read_bytes()
    for content in (
        b"",
        b"GGUF",
        data[:30],
        data[:1000],
        data[:-4],
        b"XXXX" + data[4:],
    ):
        path.write_bytes(content)
        with pytest.raises(ClaraError, match="truncated or not a GGUF file") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ClaraError, match="no such file"):
        GgufFile(tmp_path / "none.gguf")


def test_a_model_in_several_files(tmp_path):
    config = _config("Qwen2")
    expected = _write(tmp_path / "model.gguf", config, "qwen2", split=12)
    first, second, third = sorted(tmp_path.glob("model-*-of-00003.gguf"))
    model = load_model(first)
    for tensor in gguf_tensors(config):
        array = extract(model.params, tensor)
        np.testing.assert_array_equal(array, expected[tensor.name])

    def fails(pattern, path=first):
        with pytest.raises(ClaraError, match=pattern) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)

    fails(f"is part 2 of 3; give the first, {first}$", second)
    renamed = first.rename(tmp_path / "renamed.gguf")
    fails("is part 1 of 3, but is not called so; .* end in -00001-of-00003", renamed)
    renamed.rename(first)
    data = third.read_bytes()
    third.write_bytes(data[:-4])
    fails(f"{third}: is truncated")
    third.write_bytes(second.read_bytes())
    fails("its 3 parts hold 24 tensors instead of 2[0-9]; fetch all")
    third.unlink()
    fails(f"is the first of 3 parts, of which {third.name} is missing; fetch it, too")


def test_types_that_cannot_be_read(tmp_path):
    path, config = tmp_path / "model.gguf", _config("Qwen2")
    whole = [("blk.1.attn_q.bias", np.zeros(WIDTH, np.int32))]
    _write(path, config, "qwen2", extra=whole, skip=("blk.1.attn_q.bias",))
    with pytest.raises(ClaraError, match="has type I32, which cannot be read; take a"):
        load_model(path)
    _write(path, config, "qwen2", Kind.Q8_0)
    data = path.read_bytes()
    place = data.index(b"blk.0.ffn_down.weight") + 21 + 4 + 2 * 8
    assert data[place] == Kind.Q8_0
    path.write_bytes(data[:place] + b"\xfa" + data[place + 1 :])
    with pytest.raises(ClaraError, match="of the unknown type 250; take a file of"):
        load_model(path)


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
def test_other_splits_round_trip(name, capsys):
    original = _byte_level(SPLITS["gpt-2"])
    rebuilt = _build(_metadata(original, **{"ggml.pre": name}))
    for text in TEXTS:
        assert rebuilt.decode(_ids(rebuilt, text)) == text
    said = capsys.readouterr().err
    assert ("names no pre-tokenizer" in said) == (name == "default")
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
def test_tokenizers_that_are_refused(changes, pattern):
    metadata = _metadata(_byte_level(SPLITS["gpt-2"]), **changes)
    with pytest.raises(ClaraError, match=pattern) as caught:
        _build(metadata, "model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
