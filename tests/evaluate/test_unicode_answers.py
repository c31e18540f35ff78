"""Answers in scripts other than Latin, and in other spellings of the same."""

import random
import unicodedata

import pytest

from clara_jax.evaluate import metrics

FURTHER = (*range(0x1E00, 0x2000), *range(0x3041, 0x3100), *range(0xAC00, 0xAD00))
"""Composed Latin and Greek, kana, Hangul."""


def scores(prediction, *gold, unicode=True):
    found = metrics.score_answers([prediction], [gold], unicode=unicode)
    return [found[name] for name in ("exact_match", "f1", "cover_em")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1990–1995", "1990-1995"),  # en dash, hyphen
        ("1990—1995", "1990‐1995"),  # em dash, typographic hyphen
        ("−40", "-40"),  # minus sign
        ("“Quoted” ‘so’…", "\"quoted\" 'so'..."),
        ("l’été", "l'été"),
        ("«Ñandú»", "ñandú"),
        ("café", "cafe\u0301"),
        ("Å", "A\u030a"),
        ("ＡＢＣ１２３", "abc123"),  # full width
        ("ﾄｳｷｮｳ", "トウキョウ"),  # half width
        ("が", "か\u3099"),
        ("東京タワー。", "東京 タワー"),
        ("（株）日立", "㈱日立"),
        ("¿Qué?", "qué"),
        ("co\u00adoperate", "cooperate"),  # soft hyphen
        ("½", "1/2"),
        ("한국", unicodedata.normalize("NFD", "한국")),
        ("the Übung", "u\u0308bung"),
        ("L´Étoile", "L'étoile"),  # an accent for an apostrophe
    ],
)
def test_the_same_in_other_characters(one, other):
    assert scores(one, other) == scores(other, one) == [1.0, 1.0, 1.0]


def test_chinese_is_compared_by_characters():
    assert scores("中华人民共和国", "中国") == [0.0, pytest.approx(2 * 2 / 9), 1.0]
    assert scores("在北京大学。", "北京大学") == [0.0, pytest.approx(8 / 9), 1.0]
    assert scores("北京", "南京")[1:] == [0.5, 0.0]
    # Latin letters and digits within it are words.
    assert scores("买了iPhone 15", "iPhone 15") == [0.0, pytest.approx(4 / 6), 1.0]


def test_japanese_and_korean_are_compared_by_characters():
    assert scores("東京です", "東京") == [0.0, pytest.approx(4 / 6), 1.0]
    assert scores("서울에서", "서울") == [0.0, pytest.approx(4 / 6), 1.0]
    assert scores("서울 특별시", "서울특별시") == [1.0, 1.0, 1.0]


def test_what_differs_stays_different():
    for one, other in (("cafe", "café"), ("ü", "u"), ("か", "が"), ("€5", "5")):
        assert scores(one, other)[0] == 0.0
    assert scores("Aチーム", "チーム") == [0.0, pytest.approx(6 / 7), 1.0]


def test_it_is_off_unless_asked_for():
    assert scores("1990–1995", "1990-1995", unicode=False) == [0.0, 0.0, 0.0]
    assert scores("東京です", "東京", unicode=False) == [0.0, 0.0, 0.0]
    assert scores("café", "cafe\u0301", unicode=False)[0] == 0.0


def test_plain_answers_score_alike():
    for one, other in (("The  river Po", "a river, Po!"), ("yes it is", "yes")):
        assert scores(one, other) == scores(one, other, unicode=False)


def test_answers_of_which_nothing_is_left():
    gold = [("The The", "Paris"), ("!?",), ("noanswer", ""), ("…",)]
    assert metrics.empty_answers(gold) == ["The The", "!?"]
    assert metrics.empty_answers(gold, unicode=True) == ["The The", "!?", "…"]


def test_composed_and_decomposed_texts_are_the_same():
    letters = [chr(i) for i in (*range(32, 0x250), *range(0x370, 0x3D0), *FURTHER)]
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(letters, k=8))
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
        one, other = (metrics.normalize_answer(form, unicode=True) for form in forms)
        assert one == other == metrics.normalize_answer(one, unicode=True), ascii(text)
