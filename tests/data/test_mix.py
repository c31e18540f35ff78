"""Mixes of training data: the split, and what the files hold."""

import collections
import json

import numpy as np
import pytest
from toy_mix import (
    HEAD,
    LENGTH,
    STAGES,
    TOKENIZER,
    documents,
    held_files,
    make,
    passage,
    rows,
    source,
    words,
    write_jsonl,
)

from clara_jax.data import open_records
from clara_jax.data.mix import table
from clara_jax.data.mix_database import text_key
from clara_jax.data.near_duplicates import NearDuplicates, likeness, shingles
from clara_jax.errors import ClaraError
from clara_jax.text.bm25 import Bm25


def test_no_passage_is_on_both_sides(made):
    folder, _ = made
    train = set().union(*(documents(folder / f"{name}.jsonl") for name in STAGES))
    held = set().union(*(documents(path) for path in held_files(folder)))
    assert train and held and not train & held
    # Neither are near-duplicates, nor pieces of one passage.
    near = [shingles(text) for text in held]
    for text in train:
        own = shingles(text)
        assert max(likeness(own, other) for other in near) < 0.8
    marks = [
        {w for text in side for w in text.split() if "y" in w} for side in (train, held)
    ]
    assert not marks[0] & marks[1]


def test_questions_are_with_their_documents(made, world):
    folder, _ = made
    right = {}
    for name in ("single", "again", "multi"):
        for record in open_records(world / f"{name}.jsonl"):
            for question in record.questions:
                right.setdefault(question, set()).update(record.answers)
    for path in (folder / "instruct.jsonl", folder / "end_to_end.jsonl"):
        for row in rows(path):
            assert set(row["answers"]) <= right[row["question"]]
            gold = {row["docs"][i] for i in row["pos_index"]}
            assert len(set(row["docs"])) == len(row["docs"])
            answer = row["answers"][0]
            if answer.startswith("x"):
                assert any(answer in text for text in gold) or answer == "x"
            assert len(gold) == (2 if row["question"].startswith("Which") else 1)


def test_sizes_of_records(made):
    folder, _ = made
    for row in rows(folder / "instruct.jsonl"):
        assert 2 <= len(row["docs"]) - len(row["pos_index"]) <= 4
    for path in [folder / "end_to_end.jsonl", *folder.glob("held_out/*.jsonl")]:
        for row in rows(path):
            assert len(row["docs"]) == 8 and row["pos_index"]
    # The right document stands anywhere.
    places = {row["pos_index"][0] for row in rows(folder / "end_to_end.jsonl")}
    assert len(places) > 5
    for row in rows(folder / "scp.jsonl"):
        assert len(row["docs"]) == 1
        assert len(row.get("question", ())) <= 4
    everything = [p for p in folder.rglob("*.jsonl") if p.name != "corpus.jsonl"]
    for path in everything:
        assert len(list(open_records(path))) == len(rows(path))
        for text in documents(path):
            assert TOKENIZER.document_length(text) <= LENGTH


def test_questions_of_one_passage_are_grouped(made, world):
    folder, manifest = made
    asked = collections.defaultdict(list)
    for path in (folder / "scp.jsonl", folder / "held_out_scp.jsonl"):
        for row in rows(path):
            if row["data_type"] == "qa":
                asked[text_key(row["docs"][0])].append(row["question"])
    records = open_records(world / "single.jsonl")
    joined = asked[text_key(records[4].documents[0])]
    # Five of its own, one from the other source; the repeated one once.
    assert sorted(map(len, joined)) == [3, 3]
    assert "Anything new 4?" in joined[0] + joined[1]
    dropped = manifest["sources"]["again"]["dropped"]
    assert dropped["repeated_questions"] == 10
    assert dropped["near_duplicates"] == 10
    assert manifest["sources"]["multi"]["dropped"]["without_gold"] == 1
    assert manifest["sources"]["plain"]["dropped"]["near_duplicates"] == 0


def test_long_passages_are_cut_and_questions_follow_their_answers(made):
    folder, manifest = made
    assert manifest["sources"]["single"]["cut"]["passages"] >= 6
    found = 0
    for path in (folder / "scp.jsonl", folder / "held_out_scp.jsonl"):
        for row in rows(path):
            for answer in row["answers"]:
                if answer.startswith("x100"):
                    assert answer in row["docs"][0]
                    found += 1
    assert found == 6 * 12


def test_weights(made):
    folder, _ = made

    def times(name, begin):
        found = collections.Counter(row["question"] for row in rows(folder / name))
        return {n for q, n in found.items() if q.startswith(begin)}, len(
            [q for q in found if q.startswith(begin)]
        )

    assert times("end_to_end.jsonl", "New")[0] == {2}
    assert times("instruct.jsonl", "Which")[0] == {2}
    assert times("end_to_end.jsonl", "Which")[0] == {1}
    half, all_ = times("instruct.jsonl", "New")[1], times("end_to_end.jsonl", "New")[1]
    assert 0 < half < all_
    # The copies have other documents, or another order.
    twice = collections.defaultdict(list)
    for row in rows(folder / "instruct.jsonl"):
        if row["question"].startswith("Which"):
            twice[row["question"]].append(row["docs"])
    assert len(twice) > 10 and all(one != other for one, other in twice.values())
    repeated = [r for r in rows(folder / "scp.jsonl") if r["docs"] == r["answers"]]
    assert repeated
    others = [r for r in rows(folder / "scp.jsonl") if r["answers"][0][:5] == "short"]
    assert 0 < len(others) <= 12


def test_the_corpus_is_all_of_it_with_the_held_out_first(made):
    folder, manifest = made
    corpus = rows(folder / "corpus.jsonl")
    names = [row["id"] for row in corpus]
    assert len(set(names)) == len(names)
    texts = [row["text"] for row in corpus]
    held = set().union(*(documents(path) for path in held_files(folder)))
    train = set().union(*(documents(folder / f"{name}.jsonl") for name in STAGES))
    assert held | train <= set(texts)
    places = [i for i, text in enumerate(texts) if text in held]
    assert max(places) < min(i for i, text in enumerate(texts) if text in train)
    assert manifest["files"]["corpus.jsonl"]["records"] == len(corpus)


def test_the_first_of_the_corpus_are_of_all_sources(made, world):
    folder, _ = made
    names = {}
    for name in ("single", "again", "multi", "plain"):
        for record in open_records(world / f"{name}.jsonl"):
            for text in record.documents:
                names.setdefault(text_key(text), name)
    corpus = rows(folder / "corpus.jsonl")
    held = set().union(*(documents(path) for path in held_files(folder)))
    last = max(i for i, row in enumerate(corpus) if row["text"] in held)
    for begin in (0, last + 1):
        texts = [row["text"] for row in corpus[begin : begin + 24]]
        found = {names.get(text_key(text)) for text in texts}
        assert len(found & {"single", "again", "multi"}) == 3


def test_no_file_is_empty(made, world, tmp_path):
    folder, manifest = made
    assert all(path.stat().st_size for path in folder.rglob("*.jsonl"))
    for name in ("held_out/other.jsonl", "held_out/plain.jsonl"):
        assert not (folder / name).exists()
        assert manifest["files"][name] == {"records": 0, "questions": 0}
    sources = source("single", "single.jsonl", "instruct = 0", "evaluate = false")
    manifest = make(world, tmp_path / "mix", sources, HEAD.replace("0.25", "0"))
    for name in ("held_out_scp.jsonl", "instruct.jsonl"):
        assert not (tmp_path / "mix" / name).exists()
        assert manifest["files"][name]["records"] == 0


def test_the_manifest_counts_what_is_there(made):
    folder, manifest = made
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.jsonl")}
    for name, file in manifest["files"].items():
        assert file["records"] == (len(rows(folder / name)) if name in there else 0)
    assert there == {
        name for name, file in manifest["files"].items() if file["records"]
    }
    for stage in ("instruct.jsonl", "end_to_end.jsonl"):
        per_source = [s["files"].get(stage, {}) for s in manifest["sources"].values()]
        total = sum(file.get("records", 0) for file in per_source)
        assert total == manifest["files"][stage]["records"]
    scp = [row for row in rows(folder / "scp.jsonl") if row["data_type"] == "qa"]
    pairs_ = sum(len(row["question"]) for row in scp)
    assert manifest["files"]["scp.jsonl"]["questions"] == pairs_
    text = table(manifest)
    assert "single" in text and "left out: " in text


def test_hard_documents_come_first(tmp_path):
    """Beside the right passage stands the best of the others by BM25."""
    random = np.random.default_rng(3)
    texts = [words(random, 40) for _ in range(80)]
    asked = [f"{' '.join(text.split()[:4])} {words(random, 3)}?" for text in texts]
    pairs = zip(texts, asked, strict=True)
    records = [{"docs": [t], "question": q, "answer": "a"} for t, q in pairs]
    write_jsonl(tmp_path / "a.jsonl", records)
    folder, head = tmp_path / "mix", HEAD.replace("candidates = 8", "candidates = 2")
    make(tmp_path, folder, source("a", "a.jsonl"), head)
    train = documents(folder / "scp.jsonl")
    pool = [text for text in texts if text in train]
    ranker = Bm25(pool)
    found = rows(folder / "end_to_end.jsonl")
    assert len(found) == len(pool) > 40
    for row in found:
        (right,) = row["pos_index"]
        gold, other = row["docs"][right], row["docs"][1 - right]
        best = [pool[i] for i in ranker.best([row["question"]], 5)[1][0]]
        assert other == next(text for text in best if text != gold)


def test_explicit_splits(world, tmp_path):
    sources = (
        source("single", "single.jsonl", 'split = "train"')
        + source("multi", "multi.jsonl", 'split = "held_out"', "scp = 0")
    )  # fmt: skip
    manifest = make(world, tmp_path / "mix", sources, HEAD.replace("0.25", "0"))
    single, multi = manifest["sources"]["single"], manifest["sources"]["multi"]
    assert single["questions"]["held_out"] == 0 == multi["questions"]["train"]
    # What both have is held out.
    assert single["dropped"]["split_conflicts"] > 0
    assert multi["dropped"]["split_conflicts"] == 0
    train = documents(tmp_path / "mix" / "scp.jsonl")
    assert not train & documents(tmp_path / "mix" / "held_out" / "multi.jsonl")


def test_a_near_copy_that_is_held_out_by_the_recipe_stays(world, tmp_path):
    sources = (
        source("single", "single.jsonl")
        + source("again", "again.jsonl", 'split = "held_out"')
    )  # fmt: skip
    manifest = make(world, tmp_path / "mix", sources)
    assert manifest["sources"]["again"]["dropped"]["near_duplicates"] == 0
    assert manifest["sources"]["again"]["questions"]["held_out"] == 10 + 10 + 30


def test_limits(world, tmp_path):
    sources = source("single", "single.jsonl", "limit = 20") + source(
        "multi", "multi.jsonl", "limit = 12", "scp = 0"
    )
    manifest = make(world, tmp_path / "mix", sources)
    assert sum(manifest["sources"]["single"]["passages"].values()) == 20
    assert 12 <= sum(manifest["sources"]["multi"]["passages"].values()) <= 16


def test_unmarked_documents_can_all_be_right(world, tmp_path):
    sources = source("multi", "multi.jsonl", "scp = 0", 'gold = "all"')
    manifest = make(world, tmp_path / "mix", sources)
    assert manifest["sources"]["multi"]["dropped"]["without_gold"] == 0


def test_an_answer_that_a_cut_goes_through_is_dropped(tmp_path):
    random = np.random.default_rng(1)
    whole = words(random, 200)  # one sentence: cut between words
    split = " ".join(whole.split()[25:95])
    rows_ = [
        {"docs": [whole], "question": ["Long?", "Yes?", "Other?"],
         "answers": [split, "yes", "not in it"]},
        *({"docs": [passage(random, i)], "question": f"q{i}?", "answer": "a"}
          for i in range(20)),
    ]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", rows_)
    manifest = make(tmp_path, tmp_path / "mix", source("a", "a.jsonl"))
    assert manifest["sources"]["a"]["dropped"]["unanswerable"] == 1
    assert sum(manifest["sources"]["a"]["questions"].values()) == 22


def test_questions_without_an_answer(tmp_path):
    random = np.random.default_rng(1)
    rows_ = [
        {"docs": [passage(random, i)], "question": f"q{i}?", "answer": "a"}
        for i in range(20)
    ]
    rows_ += [
        {"docs": [passage(random, 20)], "question": "Of a test set?"},
        {"docs": [passage(random, 21)], "question": "None?", "answerable": False},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows_)
    manifest = make(tmp_path, tmp_path / "mix", source("a", "a.jsonl"))
    assert manifest["sources"]["a"]["dropped"]["unanswerable"] == 1
    names = ("end_to_end.jsonl", "held_out/a.jsonl")
    found = [row for name in names for row in rows(tmp_path / "mix" / name)]
    assert [r["answerable"] for r in found if r["question"] == "None?"] == [False]
    assert len(found) == 21


def test_sources_with_fields_of_other_names(tmp_path):
    random = np.random.default_rng(1)
    rows_ = [
        {"ps": [passage(random, i)], "query": f"q{i}?", "golden": {"own": f"a{i}"}}
        for i in range(20)
    ]
    (tmp_path / "no#split").mkdir()
    write_jsonl(tmp_path / "no#split" / "a.jsonl", rows_)
    names = 'fields = ["question=query", "documents=ps", "answers=golden.own"]'
    made = source("a", "no#split/a.jsonl", names)
    make(tmp_path, tmp_path / "mix", made)
    found = rows(tmp_path / "mix" / "end_to_end.jsonl")
    assert found
    assert all(
        r["answers"] == [r["question"].strip("?").replace("q", "a")] for r in found
    )
    assert make(tmp_path, tmp_path / "mix", made)
    lost = source("a", "no#split/a.jsonl", 'fields = ["question=query"]')
    several = (
        r"20 records are bad\n.*a.jsonl:1 \(likewise 2, 3,.*: has no documents; name"
    )
    with pytest.raises(ClaraError, match=several):
        make(tmp_path, tmp_path / "new", lost)


def test_near_duplicates_are_found():
    random = np.random.default_rng(2)
    near = NearDuplicates(0.8)
    texts = [words(random, 100) for _ in range(50)]
    copies = [f"{text} and more" for text in texts]
    one, other = near.bands(texts), near.bands(copies)
    assert all(set(a) & set(b) for a, b in zip(one, other, strict=True))
    assert not set(one.ravel()) & set(near.bands([words(random, 100)])[0])
    assert likeness(shingles("Two words"), shingles("two, words!")) == 1
    assert near.bands([]).shape == (0, 20)
    assert likeness(shingles("a b c d"), shingles("b c d e")) == pytest.approx(1 / 3)
