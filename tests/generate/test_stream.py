from clara_jax.generate.batched import text_pieces

PIECES = {1: b"Caf", 2: b"\xc3", 3: b"\xa9", 4: b" au", 5: b" ", 6: b"lait", 7: b"  "}


def _decode(ids):
    return b"".join(PIECES[i] for i in ids).decode("utf-8", errors="replace")


def test_pieces_are_whole_characters_and_join_to_the_text():
    pieces = list(text_pieces(iter([5, 1, 2, 3, 4, 5, 6, 7]), _decode))
    assert pieces == ["Caf", "é", " au", " lait"]


def test_a_character_that_never_ends_is_still_told():
    assert "".join(text_pieces(iter([1, 2]), _decode)) == "Caf\ufffd"
    assert list(text_pieces(iter([]), _decode)) == []
