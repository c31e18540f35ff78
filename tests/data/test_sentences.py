"""Where sentences end in several languages, and where they only seem to."""

import itertools

import pytest

from clara_jax.data.sentences import sentence_ends


def sentences(text):
    ends = [0, *sentence_ends(text).tolist(), len(text)]
    parts = [text[a:b].strip() for a, b in itertools.pairwise(ends)]
    return [part for part in parts if part]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Bell left.", "Why?", "She had to!"],
        ["J. R. Smith met the U.S. Army at 3.14 p.m. on Jan. 5.", "Then he left."],
        ['He said "Stop!" and went.', '"Why?" he asked.', '"No."', "She left."],
        ["In 1999.", "Then it was 2000.", "See No. 5 and Fig. 3 of it.", "End"],
        ["It was so (as e.g. this, i.e. that).", "[Then.]", "Wait... what?!", "Yes."],
        ["The queen died.[12]", "Her son did not."],
        ["他来了。", "「好！」", "她说。", "为什么？", "是"],
        ["यह है।", "वह था।"],
        ["¿Por qué?", "«Sí.»", "Nada"],
    ],
)
def test_ends_are_found_and_no_others(expected):
    joined = "" if expected[0].startswith("他") else " "
    assert sentences(joined.join(expected)) == expected


def test_layout_ends_sentences_too():
    text = "# Its head\nA line\nthat goes on\n\nA blank line\n- one\n* two\n\n1. Three."
    assert sentences(text) == [
        "# Its head",
        "A line\nthat goes on",
        "A blank line",
        "- one",
        "* two",
        "1. Three.",
    ]


def test_a_blank_line_ends_even_after_an_abbreviation():
    assert sentences("He saw the Dr.\n\nthen he left") == [
        "He saw the Dr.",
        "then he left",
    ]


@pytest.mark.parametrize("text", ["", " \n ", "no end", "a.b", "3.14", "...a"])
def test_there_may_be_none(text):
    assert len(sentence_ends(text)) == 0


@pytest.mark.parametrize("unit", [".", '."', "\n", "?*", "#", "\n#", "。", " ", "a\n-"])
def test_runs_of_anything_are_read_once(unit):
    # Quadratic rules would take hours for this.
    assert len(sentence_ends(unit * (300_000 // len(unit)))) <= 300_000
