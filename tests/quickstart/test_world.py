"""The encyclopedia: names, facts, phrasings."""

import random

from clara_jax.quickstart import world


def test_names_are_split_once_and_for_all():
    train, held = world.NAMES[False], world.NAMES[True]
    assert len({*train, *held}) == len(train) + len(held) == 28 * 28
    # Every part of a held-out name is known from other names.
    for place in (0, 1):
        parts = {name.split()[place] for name in held}
        assert parts <= {name.split()[place] for name in train}


def test_documents_hold_name_and_facts():
    draw = random.Random(1)
    for item in world.draw_entries(world.NAMES[True], draw):
        text = item.document(draw)
        assert text.count(item.name) == 3
        for question, answer in item.questions(draw):
            assert answer in text and item.name in question
        assert "{" not in text


def test_answers_have_several_words():
    for values in world.FACTS.values():
        assert all(len(value.split()) >= 2 for value in values)


def test_facts_have_equally_many_values():
    # What the report calls chance rests on it.
    assert [len(set(values)) for values in world.FACTS.values()] == [16] * 4
    assert [len(values) for values in world.FACTS.values()] == [16] * 4
    assert world.FACTS.keys() == world.QUESTIONS.keys()
