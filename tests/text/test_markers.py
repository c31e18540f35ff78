from clara_jax.text import plain, readable
from clara_jax.text.prompts import mark, marker_names


def test_marks_read_like_the_original_tokens():
    assert readable(f"a {mark('MEM0')}{mark('SEP')} b") == "a <MEM0><SEP> b"
    assert readable("a <MEM0> b") == "a <MEM0> b"


def test_plain_text_spells_no_mark():
    assert plain(f"x{mark('MEM0')}y") == "xMEM0y"
    assert plain("kept: <MEM0> \u00e9 \U0001f600") == "kept: <MEM0> \u00e9 \U0001f600"


def test_names_come_in_the_order_of_ids():
    assert marker_names(2) == ("MEM0", "MEM1", "AE", "ENC", "SEP")
