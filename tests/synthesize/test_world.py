"""The encyclopedia: names, facts, phrasings."""

import random
import re

import pytest

from clara_jax.synthesize import world


@pytest.mark.parametrize("kind", world.KINDS)
def test_names_are_split_once_and_for_all(kind):
    train, held = world.names(kind, False), world.names(kind, True)
    assert not set(train) & set(held)
    assert 6.9 < len(set(train)) / len(set(held)) < 7.1
    # Every part of a held-out name is known from other names.
    for place in (0, 1):
        parts = {name.split()[place] for name in held}
        assert parts <= {name.split()[place] for name in train}


def test_no_birthplace_is_a_held_out_town():
    draw = random.Random(0)
    held = set(world.names("town", True))
    for name in world.names("person", False)[:300]:
        assert world.entry("person", name, draw).facts["birthplace"] not in held


@pytest.mark.parametrize("kind", world.KINDS)
def test_documents_hold_name_and_facts(kind):
    draw = random.Random(1)
    for name in world.names(kind, True):
        item = world.entry(kind, name, draw)
        text = world.document(item, draw)
        assert text.count(name) == 3
        for question, answer in world.questions(item, draw):
            assert answer in text and name in question
        assert "{" not in text


def test_answers_have_several_words():
    draw = random.Random(2)
    item = world.entry("person", "Abo Alden", draw)
    assert all(len(answer.split()) >= 2 for _, answer in world.questions(item, draw))


def test_words_cover_everything():
    draw, known = random.Random(3), set(world.words())
    for kind in world.KINDS:
        for name in world.names(kind, False) + world.names(kind, True):
            item = world.entry(kind, name, draw)
            texts = [world.document(item, draw)]
            texts += [text for pair in world.questions(item, draw) for text in pair]
            for text in texts:
                assert set(re.findall(r"\w+|[^\w\s]", text)) <= known


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("the year of the fox", 16),
        ("stone carver", 16),
        ("misty moors", 12),
        ("Port Aldra", 84),
    ],
)
def test_count_values(value, count):
    assert world.count_values(value) == count
