"""Scores as the data sets' own scripts give them, on answers drawn at random.

The scripts' rules stand here once more, written for themselves: nothing of the package
is used in them.
"""

import inspect
import random

import pytest

from clara_jax.evaluate.metrics import best_scores

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
WORDS = (
    "the The a an A AN Paris paris river River's new York u.s. 1,204 1204 3.5 yes no "
    "Yes No noanswer NOANSWER True False true café cafe\u0301 CAFÉ Åre 東京 naïve "
    "“the” – theatre and band-a an-d ,a. (the) the's x_a"
).split()
GAPS = (" ", " ", " ", "  ", "\t", "\n", "-", ", ", "")
SCRIPTS = ("squad", "squad2", "hotpotqa", "musique")


def reduced(text):
    """Lower case, no punctuation, no articles, single spaces."""
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    word, parts = "", []
    for c in kept + " ":
        if c.isalnum() or c == "_":  # what a regular expression calls a word
            word += c
            continue
        parts += [" " if word in ("a", "an", "the") else word, c]
        word = ""
    return " ".join("".join(parts).split())


def overlap(found, gold):
    """F1 of two lists of words, None where they have none in common."""
    rest, shared = list(gold), 0
    for word in found:
        if word in rest:
            rest.remove(word)
            shared += 1
    if not shared:
        return None
    precision, recall = shared / len(found), shared / len(gold)
    return (2 * precision * recall) / (precision + recall)


def official(script, prediction, golds):
    """Exact match and F1 of one question."""
    if script == "squad2":
        golds = [gold for gold in golds if reduced(gold)]
        if not golds:
            golds = [""]
    exact, best = 0.0, 0.0
    for gold in golds:
        one, other = reduced(prediction), reduced(gold)
        exact = max(exact, 1.0 if one == other else 0.0)
        if script in ("squad2", "musique") and (one == "" or other == ""):
            score = 1.0 if one == other else 0.0
        else:
            score = overlap(one.split(), other.split()) or 0.0
        if script == "hotpotqa" and one != other:
            if "yes" in (one, other) or "no" in (one, other):
                score = 0.0
            if "noanswer" in (one, other):
                score = 0.0
        best = max(best, score)
    return exact, best


def drawn(rng):
    """An answer: empty, a word or several, some repeated, with odd gaps."""
    count = rng.choice((0, 1, 1, 2, 3, 4, 6))
    words = [rng.choice(WORDS) for _ in range(count)]
    text = "".join(word + rng.choice(GAPS) for word in words)
    return text + rng.choice(("", "", ".", "!?", " the"))


def near(rng, text):
    """An answer much like another one."""
    words = [*text.split(), rng.choice(WORDS)]
    rng.shuffle(words)
    return rng.choice((text, text.upper(), f"The {text}.", " ".join(words)))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scores_are_those_of_the_script(script):
    rng = random.Random(2000)
    golds = [[drawn(rng) for _ in range(rng.choice((1, 1, 2, 4)))] for _ in range(2000)]
    said = [
        near(rng, rng.choice(gold)) if rng.random() < 0.6 else drawn(rng)
        for gold in golds
    ]
    pairs = zip(said, golds, strict=True)
    exact, best = zip(
        *(official(script, one, gold) for one, gold in pairs), strict=True
    )
    assert best_scores("exact_match", said, golds, rules=script) == list(exact)
    assert best_scores("f1", said, golds, rules=script) == list(best)
    # All kinds of outcome are among them.
    assert 0.2 < sum(exact) / 2000 < 0.8
    assert sum(0 < score < 1 for score in best) > 200
    assert sum(reduced(text) == "" for text in said) > 50


def test_scripts_differ_where_nothing_is_left():
    for script, expected in zip(SCRIPTS, (0.0, 1.0, 0.0, 1.0), strict=True):
        assert best_scores("f1", ["The The"], [["The The"]], rules=script) == [expected]
        assert best_scores("exact_match", ["a"], ["The The"], rules=script) == [1.0]
        assert best_scores("cover_em", ["Paris"], ["The The"], rules=script) == [0.0]
        assert best_scores("cover_em", ["an"], ["The The"], rules=script) == [1.0]
    both = [["The", "Paris"]]
    assert best_scores("exact_match", ["a"], both, rules="squad2") == [0.0]
    assert best_scores("exact_match", ["a"], both, rules="musique") == [1.0]
    assert best_scores("exact_match", ["", "x"], [[], []], rules="squad2") == [1.0, 0.0]


def test_a_question_without_an_answer_takes_the_word_or_nothing():
    said = ["noanswer", "", "Paris", "noanswer here"]
    gold = [("noanswer", "")] * 4
    for script in ("original", *SCRIPTS):
        for metric, last in (("exact_match", 0.0), ("f1", 0.0), ("cover_em", 1.0)):
            found = best_scores(metric, said, gold, rules=script)
            assert found == [1.0, 1.0, 0.0, last]


def test_unknown_rules_are_refused():
    unchecked = inspect.unwrap(best_scores)  # as in use, without the tests' types
    with pytest.raises(ValueError, match="'trivia' are unknown; there are original"):
        unchecked("f1", [], [], rules="trivia")


def test_only_the_original_reads_true_as_yes():
    assert best_scores("exact_match", ["True"], ["yes"]) == [1.0]
    for script in SCRIPTS:
        assert best_scores("exact_match", ["True"], ["yes"], rules=script) == [0.0]
