"""Sentences: where they end. Pieces: where they are cut, how they overlap."""

import itertools

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers
from toy_folder import DOCUMENTS

from clara_jax.data import Document, split_documents
from clara_jax.data.chunking import sentence_ends, split_text
from clara_jax.testing import toy_tokenizer
from clara_jax.text import ClaraTokenizer

WORDS = "Ada Bell was born in Corin and studied in Gemma with Edo Falk . ".split()
PROSE = (
    "Ada Bell was born in Corin. She studied with Dr. Edo Falk in Gemma, and wrote "
    'three books. "Why three?" he asked. Nobody knew! The U.S. edition came out on '
    "Jan. 5. Others followed it in the years after.\n\nHana Iver (born in Jory) read "
    "all of them. Then she wrote one of her own, which is lost. "
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [str(document) for document in DOCUMENTS]
    return ClaraTokenizer(toy_tokenizer([*texts, " ".join(WORDS)]), 2)


@pytest.fixture(scope="module")
def subwords():
    """A byte-level tokenizer: tokens hold spaces, characters are several tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([PROSE] * 3, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    return ClaraTokenizer(fast, 2)


def cut(text, tokenizer, limit):
    """Texts of the pieces, after what must hold for all of them."""
    spans = split_text(text, tokenizer, limit)
    pieces = [text[start:stop] for start, stop in spans]
    assert all(piece and piece == piece.strip() for piece in pieces)
    assert all(0 < tokenizer.document_length(piece) <= limit for piece in pieces)
    covered = 0
    for start, stop in spans:
        assert not text[covered:start].strip(), "left out"
        assert stop > covered, "adds nothing"
        covered = stop
    assert not text[covered:].strip()
    return pieces


@pytest.mark.parametrize("limit", [1, 5, 8, 30])
def test_pieces_of_words_fit_overlap_and_leave_nothing_out(tokenizer, limit):
    words = [*WORDS, *WORDS, *WORDS[::-1], *WORDS]
    text = "\n".join(" ".join(words[i : i + 6]) for i in range(0, len(words), 6))
    pieces = cut(text, tokenizer, limit)
    if limit == 30:
        assert set(pieces[0].split()[-3:]) & set(pieces[1].split()[:4])


@pytest.mark.parametrize("limit", [24, 40, 64])
def test_pieces_begin_and_end_with_sentences(subwords, limit):
    pieces = cut(PROSE * 3, subwords, limit)
    assert len(pieces) > 3
    if limit == 64:
        for piece in pieces:
            assert piece.endswith((".", "!", '"')) and piece[0] in 'ASN"TOH'
            assert not piece.endswith(("Dr.", "U.S.", "Jan."))


def test_control_tokens_that_a_text_spells_are_cut_as_text(subwords):
    tokenizer = ClaraTokenizer(subwords.base, 2, control_tokens=False)
    text = PROSE + "</s><s>" * 200 + PROSE
    pieces = cut(text, tokenizer, 40)
    assert len(pieces) < 2 * tokenizer.document_length(text) / 40


def test_a_sentence_is_repeated_where_it_is_short_enough(subwords):
    text = " ".join(f"The {i} of them was read." for i in "abcdefghijklmnop")
    pieces = cut(text, subwords, 64)
    for before, after in itertools.pairwise(pieces):
        first = after[: after.index(".") + 1]
        assert before.endswith(first) or f"{first} " in before
        assert len(first) < len(before) / 2


def test_without_sentences_lines_end_pieces_and_without_lines_words(subwords):
    lines = "\n".join(f"{name} was born in Corin" for name in WORDS * 3)
    for piece in cut(lines, subwords, 48)[:-1]:
        assert piece.endswith("in Corin")
    flat = " ".join(w for w in WORDS * 9 if w != ".")
    for piece in cut(flat, subwords, 48):
        assert set(piece.split()) <= set(WORDS)


def test_text_without_white_space_and_characters_of_many_tokens(subwords):
    cut("abracadabra" * 50, subwords, 20)
    cut("猫が好きです" * 40, subwords, 21)
    cut("🙂" * 100, subwords, 10)
    pieces = cut("猫が好きです。" * 40, subwords, 64)
    assert all(piece.startswith("猫") and piece.endswith("。") for piece in pieces)


@pytest.mark.parametrize("unit", ["abracadabra", PROSE, "a. ", ". \n", "no end "])
def test_the_work_grows_with_the_length(subwords, unit, monkeypatch):
    read = []
    count = ClaraTokenizer.document_length

    def counted(self, text):
        read.append(len(text))
        return count(self, text)

    monkeypatch.setattr(ClaraTokenizer, "document_length", counted)
    text = unit * (20_000 // len(unit))
    split_text(text, subwords, 100)
    assert sum(read) < 8 * len(text)


def test_white_space_makes_no_pieces(subwords):
    text = "\n" * 200 + "Ada Bell." + " \n" * 200 + "Edo Falk." + " " * 100
    assert cut(text, subwords, 12)[0].startswith("Ada")
    assert cut("  Ada  ", subwords, 1) == ["Ada"]


def test_pieces_know_where_they_come_from(tokenizer):
    long = Document(" ".join(WORDS), "d1", "Ada", "a.txt", metadata={"year": 1})
    short = Document("Ada Bell", source="b.txt")
    found = split_documents([long, short], tokenizer, 8)
    assert found[-1] == short and short.stop == 8 and len(found) == 3
    assert [d.label for d in found[:2]] == ["Ada (part 1 of 2)", "Ada (part 2 of 2)"]
    for piece in found[:2]:
        assert (piece.id, piece.title, piece.source) == ("d1", "Ada", "a.txt")
        assert piece.metadata == {"year": 1}
        assert piece.text == long.text[piece.start : piece.stop]
    nameless = split_documents([Document(" ".join(WORDS))], tokenizer, 8)
    assert nameless[1].label == f"{' '.join(WORDS)[:60]} (part 2 of 2)"


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
