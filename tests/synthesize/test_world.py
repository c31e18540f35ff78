"""The encyclopedia: names, facts, phrasings."""

import random
import re

import pytest

from clara_jax.synthesize import world


def test_names_are_split_once_and_for_all():
    train, held = world.names(False), world.names(True)
    assert len({*train, *held}) == len(train) + len(held) == 28 * 28
    # Every part of a held-out name is known from other names.
    for place in (0, 1):
        parts = {name.split()[place] for name in held}
        assert parts <= {name.split()[place] for name in train}


def test_documents_hold_name_and_facts():
    draw = random.Random(1)
    for name in world.names(True):
        item = world.entry(name, draw)
        text = world.document(item, draw)
        assert text.count(name) == 3
        for question, answer in world.questions(item, draw):
            assert answer in text and name in question
        assert "{" not in text


def test_answers_have_several_words():
    for values in world.FACTS.values():
        assert len(set(values)) == len(values)
        assert all(len(value.split()) >= 2 for value in values)


def test_words_cover_everything():
    draw, known = random.Random(3), set(world.words())
    for name in world.names(False)[:100] + world.names(True):
        item = world.entry(name, draw)
        texts = [world.document(item, draw)]
        texts += [text for pair in world.questions(item, draw) for text in pair]
        for text in texts:
            assert set(re.findall(r"\w+|[^\w\s]", text)) <= known


@pytest.mark.parametrize("value", ["the year of the fox", "stone carver", "Port Aldra"])
def test_count_values(value):
    assert world.count_values(value) == 16
