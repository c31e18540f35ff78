"""The word-level tokenizer, alone and under the prompts of all stages."""

import random

from clara_jax.synthesize import BASE, records, world
from clara_jax.synthesize.shipped import SHAPE
from clara_jax.synthesize.tokenizer import make_tokenizer
from clara_jax.text import (
    PARAPHRASES,
    ClaraTokenizer,
    answer_prompt,
    load_tokenizer,
    paraphrase_prompt,
    scp_prompt,
)


def test_vocabulary_is_the_shape_s_and_the_shipped_base_s():
    tokenizer = make_tokenizer()
    assert len(tokenizer) == SHAPE.vocab_size
    assert load_tokenizer(BASE).get_vocab() == tokenizer.get_vocab()


def test_prompts_have_no_unknown_words():
    tokenizer = ClaraTokenizer(make_tokenizer(), 6)
    unknown = tokenizer.base.unk_token_id
    draw = random.Random(0)
    item = world.entry("Abo Alden", draw)
    text = world.document(item, draw)
    question, answer = world.question(item, "birthyear", draw)
    prompts = [(scp_prompt(text), records.pairs(item, draw))]
    prompts += [(paraphrase_prompt(text, i), text) for i in range(len(PARAPHRASES))]
    prompts += [(answer_prompt(text, question), answer)]
    for prompt, target in prompts:
        ids, count = tokenizer.encode_chat(prompt, target)
        assert unknown not in ids
        assert tokenizer.decode(ids[count:-1]).replace("\n", " ") == (
            target.replace("\n", " ")
        )
        assert ids[-1] == tokenizer.eos_id


def test_pretraining_text_is_what_the_template_renders():
    tokenizer = ClaraTokenizer(make_tokenizer(), 6)
    prompt = answer_prompt("Abo Alden was born in Port Aldra.", "Where was Abo Alden?")
    rendered = tokenizer.chat(prompt.system, prompt.user, "Port Aldra")
    assert records.conversation(prompt, ["Port Aldra"]) == rendered


def test_unknown_words_are_tokens_of_their_own():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("Where was Nobody born?", add_special_tokens=False)
    assert ids[2] == tokenizer.unk_token_id and len(ids) == 5
