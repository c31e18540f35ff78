"""Recipes: what they say, and every way in which they say it wrong."""

from pathlib import Path

import pytest

from clara_jax.data import read_recipe
from clara_jax.data.__main__ import main
from clara_jax.errors import ClaraError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '[[source]]\nname = "a"\npath = "a.jsonl"\nlicence = "CC0-1.0"\n'


def write(path, text):
    path = path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_fields_and_defaults(tmp_path):
    text = f"held_out = 0.25\n{SOURCE}end_to_end = 2\n"
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.held_out == 0.25 and recipe.distractors == (4, 9)
    (source,) = recipe.source
    assert source.path == ("a.jsonl",) and source.end_to_end == 2.0
    assert source.scp == 1.0 and source.reconstruct == 0.0 and source.evaluate
    several = SOURCE.replace('"a.jsonl"', '["x", "y"]')
    assert read_recipe(write(tmp_path, several)).source[0].path == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "field 'source': is missing; list one"),
        ("held_out =", "is not TOML"),
        ("source = 3", "must be tables"),
        (SOURCE.replace("licence", "license"), "source 'a': has no licence; say under"),
        (SOURCE.replace("CC0-1.0", " "), "source 'a': field 'licence': is blank; say"),
        (SOURCE.replace('name = "a"', ""), "source 1: needs a name"),
        (SOURCE.replace('"a"', '"a/b"'), "source 1: needs a name"),
        (SOURCE.replace('path = "a.jsonl"', ""), "source 'a': field 'path' is missing"),
        (SOURCE.replace('"a.jsonl"', "[]"), "source 'a': field 'path': names no file"),
        (SOURCE + SOURCE, "field 'source': 'a' is there twice"),
        (SOURCE + "instrct = 1", "'a': field 'instrct' is unknown; did you mean 'inst"),
        (SOURCE + 'split = "dev"', "'a': field 'split': is 'dev', but must be one of"),
        (SOURCE + 'gold = "x"', "source 'a': field 'gold': is 'x'"),
        (SOURCE + 'format = "x"', "source 'a': field 'format': is 'x'"),
        (SOURCE + 'fields = ["a"]', "source 'a': data.fields holds 'a'; write for exa"),
        (SOURCE + "scp = -1", "source 'a': field 'scp': must be from 0 to 1000"),
        (SOURCE + 'scp = "1"', "source 'a': field 'scp' must be float"),
        (SOURCE + "limit = -1", "source 'a': field 'limit': must not be negative"),
        ("heldout = 0.1\n" + SOURCE, "field 'heldout' is unknown; did you mean"),
        ("held_out = 1\n" + SOURCE, "field 'held_out': must be from 0 to below 1"),
        ("pairs = 0\n" + SOURCE, "field 'pairs': must be 1 or more"),
        ("candidates = 0\n" + SOURCE, "field 'candidates': must be 1 or more"),
        ("seed = -1\n" + SOURCE, "field 'seed': must not be negative"),
        ("distractors = [4]\n" + SOURCE, "field 'distractors': must be [least, most]"),
        ("near_duplicate = 0\n" + SOURCE, "field 'near_duplicate': must be above 0"),
        ("contained = 0\n" + SOURCE, "field 'contained': must be above 0, at most 1"),
        ("contained = 1.1\n" + SOURCE, "field 'contained': must be above 0, at most"),
        ('file = "x"\n' + SOURCE, "field 'file' is unknown"),
    ],
)
def test_refusals_are_one_line_that_names_the_place(tmp_path, capsys, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ClaraError) as caught:
        read_recipe(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and message in said
    assert main(["mix", str(path), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_no_such_recipe(tmp_path):
    with pytest.raises(ClaraError, match="none.toml: cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["smollm2_135m", "smollm2_135m_smoke"])
def test_the_recipes_that_come_with_the_repository(name):
    recipe = read_recipe(ROOT / "configs" / f"{name}.toml")
    assert all(source.licence and source.origin for source in recipe.source)
    assert recipe.candidates == 20
