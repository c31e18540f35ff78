"""A word-level tokenizer for the encyclopedia.

One token per word, and one for each fixed sentence of the prompts: as a large
vocabulary spends few tokens on common text, this one spends one on text that is always
the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from clara_jax.synthesize import world
from clara_jax.text import PARAPHRASES
from clara_jax.text.prompts import ANSWER_SYSTEM, PARAPHRASE_SYSTEM, SCP_SYSTEM

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def phrases() -> list[str]:
    """Fixed parts of the prompts, each of which is one token.

    Single words are left out: they would be found inside longer ones.
    """
    found = [ANSWER_SYSTEM, SCP_SYSTEM, PARAPHRASE_SYSTEM]
    found += ["Background:", "Question:", "Answer:"]
    for template in PARAPHRASES:
        found += [part.strip() for part in template.split("{docs}")]
    return [text for text in dict.fromkeys(found) if re.search(r"\W", text)]


def _lone_words() -> list[str]:
    parts = [part.strip() for text in PARAPHRASES for part in text.split("{docs}")]
    return [part for part in parts if re.fullmatch(r"\w+", part)]


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Build the tokenizer; its ids follow from `world` and the prompts alone."""
    fixed = phrases()
    vocabulary = [PAD, BOS, EOS, UNKNOWN, *ROLES, *fixed]
    vocabulary += [*_lone_words(), *world.words()]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    # Joins words by spaces and takes those before punctuation out again.
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # type: ignore
    backend.add_special_tokens([PAD, BOS, EOS, *ROLES])
    backend.add_tokens(
        [tokenizers.AddedToken(text, normalized=False) for text in fixed]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files, which are the same for any version of transformers.

    Args:
      folder: there already.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    make_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
