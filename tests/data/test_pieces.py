import pytest
from toy_folder import DOCUMENTS

from clara_jax.data import Document, split_documents
from clara_jax.data.pieces import split_text
from clara_jax.testing import toy_tokenizer
from clara_jax.text import ClaraTokenizer

WORDS = "Ada Bell was born in Corin and studied in Gemma with Edo Falk . ".split()


@pytest.fixture(scope="module")
def tokenizer():
    texts = [str(document) for document in DOCUMENTS]
    return ClaraTokenizer(toy_tokenizer([*texts, " ".join(WORDS)]), 2)


@pytest.mark.parametrize("limit", [1, 5, 8, 30])
def test_pieces_fit_overlap_and_leave_nothing_out(tokenizer, limit):
    words = [*WORDS, *WORDS, *WORDS[::-1], *WORDS]
    text = "\n".join(" ".join(words[i : i + 6]) for i in range(0, len(words), 6))
    pieces = split_text(text, tokenizer, limit)
    assert all(0 < tokenizer.document_length(piece) <= limit for piece in pieces)
    assert pieces[0].split()[0] == words[0] and pieces[-1].split()[-1] == words[-1]
    position = 0  # every piece begins within or right after the one before it
    for piece in pieces:
        found = piece.split()
        starts = [
            i
            for i in range(max(position - len(found), 0), position + 1)
            if words[i : i + len(found)] == found
        ]
        assert starts, piece
        position = starts[-1] + len(found)
    assert position == len(words)
    if limit == 30:
        assert set(pieces[0].split()[-3:]) & set(pieces[1].split()[:4])


def test_labels_name_the_part(tokenizer):
    long = Document(" ".join(WORDS), "d1", "Ada", "a.txt")
    short = Document("Ada Bell", source="b.txt")
    found = split_documents([long, short], tokenizer, 8)
    assert found[-1] == short and len(found) == 3
    assert [d.label for d in found[:2]] == ["Ada (part 1 of 2)", "Ada (part 2 of 2)"]
    assert {d.source for d in found[:2]} == {"a.txt"} and found[0].id == "d1"
