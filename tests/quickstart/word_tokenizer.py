"""How the tokenizer files of the quickstart's base were made, and can be made again.

One token per word, and one for each fixed sentence of the prompts: as a large
vocabulary spends few tokens on common text, this one spends one on text that is always
the same. After a change of the world or of the prompts, run

    PYTHONPATH=. python tests/quickstart/word_tokenizer.py

and train the base again (``configs/quickstart_base.py``).
"""

import re
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from clara_jax.files import write_json
from clara_jax.quickstart import BASE, world
from clara_jax.text.prompts import (
    ANSWER_SYSTEM,
    PARAPHRASE_SYSTEM,
    PARAPHRASES,
    SCP_SYSTEM,
)

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OPTIONS: dict[str, Any] = {
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "clean_up_tokenization_spaces": False,
}


def words() -> list[str]:
    """Every word of the encyclopedia, sorted."""
    texts = [*world.GIVEN, *world.FAMILY]
    for group in (world.FACTS.values(), world.SENTENCES, world.QUESTIONS.values()):
        texts += [re.sub(r"\{\w+\}", " ", text) for values in group for text in values]
    return sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(texts))))


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer; its ids follow from `world` and the prompts alone."""
    parts = [ANSWER_SYSTEM, SCP_SYSTEM, PARAPHRASE_SYSTEM]
    parts += ["Background:", "Question:", "Answer:"]
    for template in PARAPHRASES:
        parts += [part.strip() for part in template.split("{docs}")]
    fixed = [part for part in dict.fromkeys(parts) if re.search(r"\W", part)]
    # Not fixed parts: these would be found inside longer words.
    lone = [part for part in parts if re.fullmatch(r"\w+", part)]
    vocabulary = [PAD, BOS, EOS, UNKNOWN, *ROLES, *fixed, *lone, *words()]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # Joins words by spaces and takes those before punctuation out again.
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    backend.add_special_tokens([PAD, BOS, EOS, *ROLES])
    backend.add_tokens([tokenizers.AddedToken(x, normalized=False) for x in fixed])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **OPTIONS)


def write(folder: Path) -> None:
    """Write the files."""
    tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **OPTIONS}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


if __name__ == "__main__":
    write(BASE)
