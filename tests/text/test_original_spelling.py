"""Our spellings of special tokens give the ids of the original's, in any tokenizer."""

import string

import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers

from clara_jax.text import ClaraTokenizer, answer_prompt, paraphrase_prompt, readable
from clara_jax.text.prompts import marker_names
from tests.text.toy import NO_SYSTEM, toy_tokenizer

M = 3
TEXTS = ("plain words", " spaces  around ", "a\n\nb:\tc", "<s>inner</s> and [INST]", "")


def sentencepiece(kind: str) -> transformers.PreTrainedTokenizerFast:
    """Character-level stand-ins for the ways Llama and Mistral files mark words."""
    characters = ["<unk>", "<s>", "</s>", "\u2581", *string.printable]
    vocabulary = {c: i for i, c in enumerate(dict.fromkeys(characters))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True)
    )
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="\u2581", prepend_scheme=kind, split=False
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = NO_SYSTEM
    return tokenizer


def word_level() -> transformers.PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<p>"
    )


BASES = {
    "bytes": toy_tokenizer,
    "prepend": lambda: sentencepiece("prepend"),
    "metaspace first": lambda: sentencepiece("first"),
    "metaspace always": lambda: sentencepiece("always"),
    "metaspace never": lambda: sentencepiece("never"),
    "words": word_level,
}


@pytest.mark.parametrize("kind", BASES)
def test_ids_equal_those_of_the_original_spelling(kind: str):
    ours = ClaraTokenizer(BASES[kind](), M)
    original = BASES[kind]()
    names = [f"<{name}>" for name in marker_names(M)]
    original.add_special_tokens({"additional_special_tokens": names})

    def ids(text: str) -> list[int]:
        return original.encode(readable(text), add_special_tokens=False)

    assert ids("<SEP>") == [ours.sep_id]
    for text in TEXTS:
        row = f"<ENC>{ours.bos}{text}{ours.eos}"
        assert ours.encode_document(text, 100) == ids(row) + list(ours.memory_ids)
        for prompt in (
            answer_prompt(ours.slots(2), text),
            paraphrase_prompt(ours.slots(1, separator=False), 3),
        ):
            chat = ours.chat(*prompt, text)
            assert ours.encode(chat) == ids(chat)
            for skip in (True, False):
                theirs = original.decode(ids(chat), skip_special_tokens=skip)
                assert ours.decode(ids(chat), skip_special=skip) == theirs
