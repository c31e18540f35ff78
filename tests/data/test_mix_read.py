"""Passages that overlap, or are near to one another by way of a third: one side."""

import numpy as np
import pytest
from toy_mix import STAGES, documents, held_files, make, rows, source, tree, write_jsonl

from clara_jax.data import mix_read
from clara_jax.data.mix_database import draw, share, text_key
from clara_jax.data.near_duplicates import likeness, marks, runs, shingles

HEAD = "held_out = 0.4\ncandidates = 2\ndistractors = [0, 1]\n"
WINDOWS = source("windows", "windows.jsonl")


def text(random, count):
    return [f"w{number}" for number in random.integers(5000, size=count)]


def record(words, question):
    return {"docs": [" ".join(words)], "question": question, "answer": "yes"}


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    """Windows of articles; the question names article and window."""
    folder = tmp_path_factory.mktemp("articles")
    random = np.random.default_rng(4)
    found = []
    for i in range(30):
        words = text(random, 540)
        # Halves that overlap; a paragraph alone, and in its section.
        found += [record(words[:60], f"{i} a?"), record(words[30:90], f"{i} b?")]
        found += [record(words[100:116], f"{i} c?"), record(words[95:150], f"{i} d?")]
        # Of two long ones, cut at 60 words each, one piece is in the other.
        found += [record(words[160:380], f"{i} e?"), record(words[320:540], f"{i} f?")]
    write_jsonl(folder / "windows.jsonl", found)
    return folder


def sides(folder):
    """Questions on either side."""
    found = []
    for path in (folder / "scp.jsonl", folder / "held_out_scp.jsonl"):
        found.append({q for row in rows(path) for q in row["question"]})
    return found


def apart(folder, first, second):
    """Articles of which two windows are on different sides."""
    train, held = sides(folder)
    assert len(train) + len(held) >= 6 * 30 and train and held
    return [
        i
        for i in range(30)
        if (f"{i} {first}?" in train) != (f"{i} {second}?" in train)
    ]


def test_passages_that_overlap_are_on_one_side(articles, tmp_path):
    folder = tmp_path / "mix"
    manifest = make(articles, folder, WINDOWS, HEAD)
    for pair in ("ab", "cd", "ef"):
        assert not apart(folder, *pair)
    assert manifest["totals"]["largest_group"] == 2
    assert not any(manifest["totals"]["dropped"].values())
    train = [runs(t) for t in set().union(*(
        documents(folder / f"{name}.jsonl") for name in STAGES))]  # fmt: skip
    for path in held_files(folder):
        for row in rows(path):
            for place in row.get("pos_index", [0]):
                own = runs(row["docs"][place])
                assert max(np.isin(own, other).mean() for other in train) < 0.3


def test_only_what_is_wholly_in_another(articles, tmp_path):
    make(articles, tmp_path / "mix", WINDOWS, HEAD + "contained = 1\n")
    for pair in ("cd", "ef"):  # the first piece of f is in e
        assert not apart(tmp_path / "mix", *pair)
    assert len(apart(tmp_path / "mix", "a", "b")) > 3


@pytest.fixture
def footers(tmp_path):
    """Passages of which 60 of 100 end in the same words."""
    random = np.random.default_rng(5)
    footer = text(random, 30)
    found = [
        record([*text(random, 20), *(footer if i < 60 else text(random, 30))], f"{i}?")
        for i in range(100)
    ]
    write_jsonl(tmp_path / "windows.jsonl", found)
    return tmp_path


def test_boilerplate_joins_nothing(footers):
    manifest = make(footers, footers / "mix", WINDOWS, HEAD)
    assert manifest["totals"]["largest_group"] == 1
    train, held = sides(footers / "mix")
    assert {f"{i}?" for i in range(60)} & train and {f"{i}?" for i in range(60)} & held


def test_a_giant_group_is_trained_on(footers, monkeypatch):
    monkeypatch.setattr(mix_read, "COMMON", 1000)
    key = text_key(rows(footers / "windows.jsonl")[0]["docs"][0]).hex()
    # By hash it would be held out.
    seed = next(i for i in range(99) if draw("side", i, key) < share(0.4))
    head = f"{HEAD}seed = {seed}\n"
    manifest = make(footers, footers / "mix", WINDOWS, head)
    assert manifest["totals"]["largest_group"] == 60
    train, held = sides(footers / "mix")
    assert {f"{i}?" for i in range(60)} <= train
    assert 5 <= len(held) <= 27


@pytest.mark.parametrize("name", ["marks", "piece_runs"])
@pytest.mark.parametrize("after", [1, 45])
def test_killed_it_goes_on(articles, tmp_path, monkeypatch, name, after):
    class Killed(BaseException):
        pass

    make(articles, tmp_path / "mix", WINDOWS, HEAD)
    monkeypatch.setattr(mix_read, "CHUNK", 8)
    calls, original = 0, getattr(mix_read, name)

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls == after:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(mix_read, name, dies)
    with pytest.raises(Killed):
        make(articles, tmp_path / "again", WINDOWS, HEAD)
    assert calls == after
    make(articles, tmp_path / "again", WINDOWS, HEAD)
    assert tree(tmp_path / "again") == tree(tmp_path / "mix")
    # What was done before is not done again.
    whole = 180 + 8 if name == "marks" else 2 * 90 + 8
    assert calls <= whole + after % 8


def test_a_common_stretch_makes_a_common_mark():
    random = np.random.default_rng(6)
    common = 0
    for count in range(200):
        stretch = text(random, 14)
        one = [*text(random, count), *stretch, *text(random, 40)]
        other = [*text(random, 7), *stretch, *text(random, 240 - count)]
        first, second = marks(" ".join(one)), marks(", ".join(other).upper())
        common += bool(set(first) & set(second))
        assert not set(first) & set(marks(" ".join(text(random, 80))))
        assert len(first) < len(one) * 0.7
    assert common >= 0.97 * 200
    assert len(marks("Two words")) == len(runs("Two words")) == 1
    assert marks("Two words") == marks("two, words!")


def varied(words, begin):
    """A text with three other words, 30 words apart."""
    return [f"other{word}" if i % 30 == begin else word for i, word in enumerate(words)]


@pytest.mark.parametrize("compared", [64, 2])
def test_near_to_a_near_duplicate_is_on_its_side(tmp_path, monkeypatch, compared):
    monkeypatch.setattr("clara_jax.data.mix_read._COMPARED", compared)
    random = np.random.default_rng(7)
    first, between, last = [], [], []
    for i in range(24):
        one = text(random, 90)
        two = varied(one, 5)
        three = varied(two, 20)
        near = [likeness(*(shingles(" ".join(words)) for words in pair))
                for pair in ((one, two), (two, three), (one, three))]  # fmt: skip
        assert near[0] >= 0.8 and near[1] >= 0.8 and near[2] < 0.8
        first.append(record(one, f"{i} first?"))
        gold = " ".join(text(random, 50))
        multi = {"docs": [gold, " ".join(two)], "pos_index": [0]}
        between.append({**multi, "question": f"{i} between?", "answer": "yes"})
        last.append(record(three, f"{i} last?"))
    for name, found in (("first", first), ("between", between), ("last", last)):
        write_jsonl(tmp_path / f"{name}.jsonl", found)
    sources = (
        source("first", "first.jsonl")
        + source("between", "between.jsonl", "scp = 0")
        + source("last", "last.jsonl")
    )
    manifest = make(tmp_path, tmp_path / "mix", sources, HEAD + "contained = 1\n")
    assert manifest["totals"]["largest_group"] == 3
    train, held = sides(tmp_path / "mix")
    assert len(train | held) == 48 and train and held  # nothing is dropped
    for i in range(24):
        assert len({f"{i} first?", f"{i} last?"} & train) in (0, 2)
