import pytest

from clara_jax.errors import ClaraError
from clara_jax.text import (
    PARAPHRASES,
    answer_prompt,
    paraphrase_prompt,
    scp_prompt,
    scp_target,
)
from clara_jax.text.prompts import mark


def test_thirteen_instructions_hold_one_place_each():
    assert len(PARAPHRASES) == 13
    assert all(text.count("{docs}") == 1 for text in PARAPHRASES)
    assert not any("{docs}" in paraphrase_prompt("D", i).user for i in range(13))


def test_user_texts():
    assert scp_prompt("D").user == "Background:\nD"
    assert answer_prompt("D", "why?").user == "Background:\nD\n\nQuestion:why?"
    assert paraphrase_prompt("D", 3).user.endswith("\n(1) D\n(2)")


def test_backslash_after_a_colon_is_dropped():
    assert answer_prompt("D", "a:\\ b\\ c:\\d").user.endswith("Question:a: b\\ c:\\d")
    assert answer_prompt("D", "\\ b").user.endswith("Question: b")


def test_braces_in_documents_stay():
    assert "{0} {docs}" in paraphrase_prompt("{0} {docs}", 0).user


def test_questions_spell_no_slot():
    assert mark("MEM0") not in answer_prompt("D", mark("MEM0")).user


def test_pairs_become_lines():
    target = scp_target(["q1", "q2"], ["a1", "a2"])
    assert target == "Question: q1\nAnswer: a1\nQuestion: q2\nAnswer: a2"
    with pytest.raises(ClaraError, match="2 questions, but 1 answers"):
        scp_target(["q1", "q2"], ["a1"])
