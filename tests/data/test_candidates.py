"""Candidates of questions out of a corpus: ranked, in blocks, killed, from a store."""

import errno
import json
import os

import numpy as np
import pytest

from clara_jax.data import Corpus, candidates, open_records
from clara_jax.data.__main__ import main
from clara_jax.data.candidates import Searched, find_candidates
from clara_jax.data.work import Work, open_work
from clara_jax.errors import ClaraError
from clara_jax.text.bm25 import Bm25

COUNT = 5


@pytest.fixture
def world(tmp_path):
    """Questions in three forms, and a corpus in which some documents are missing."""
    random = np.random.default_rng(0)
    texts = [
        " ".join([f"name{i}", *(f"w{random.integers(60)}" for _ in range(20))]) + "."
        for i in range(60)
    ]
    records = [
        {
            "docs": [texts[i].upper()],
            "question": [f"Who is name{i}?", "And w3, w4?"],
            "answers": [f"a{i}", "b"],
        }
        for i in range(8)
    ]
    records.append(
        {
            "docs": texts[20:24],
            "question": "Of name21 and name50?",
            "answers": ["c", "d"],
            "pos_index": [1],
        }
    )
    records.append(
        {"docs": ["nowhere", "lost"], "question": "zzz", "answer": "e"}
    )  # unmarked
    records.append(
        {
            "docs": ["not in the corpus", texts[30]],
            "question": "Who is name30, name31?",
            "answer": "f",
            "pos_index": [0, 1],
        }
    )
    write(tmp_path / "questions.jsonl", records)
    write(
        tmp_path / "docs.jsonl",
        [{"id": f"d{i}", "text": t} for i, t in enumerate(texts[:40])],
    )
    write(tmp_path / "more.jsonl", [{"docs": texts[40:50]}, {"docs": texts[50:]}])
    return tmp_path, texts


def write(path, values):
    path.write_text("".join(f"{json.dumps(v)}\n" for v in values), encoding="utf-8")


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(folder):
    return open_records(folder / "questions.jsonl")


def corpus(folder):
    return Corpus([folder / "docs.jsonl", folder / "more.jsonl"])


def test_best_documents_first(world):
    folder, texts = world
    out = folder / "out.jsonl"
    found = find_candidates(asked(folder), corpus(folder), COUNT, out)
    ranker = Bm25(texts)
    written = rows(out)
    assert len(written) == 8 * 2 + 3 == found.questions
    for row in written:
        best = ranker.best([row["question"]], COUNT)[1][0]
        expected = [texts[i] for i in best if i >= 0]
        assert row["docs"][: len(expected)] == expected
        assert len(set(row["docs"])) == COUNT
    assert written[0]["pos_index"] == [0] and written[0]["answers"] == ["a0"]
    assert written[-3]["answers"] == ["c", "d"] and written[-3]["pos_index"]
    # Without a word in common the first of the corpus stand there.
    assert written[-2]["docs"] == texts[:COUNT] and written[-2]["pos_index"] == []
    assert written[-1]["pos_index"] and "not in" not in str(written[-1]["docs"])
    assert len(list(open_records(out))) == len(written)
    assert found.known == len(written) - 1
    assert found.complete == sum(
        len(row["pos_index"]) == (2 if "name31" in row["question"] else 1)
        for row in written
    )
    assert found.some == found.complete + 1
    assert f"found for {found.complete} (" in str(found)
    assert [path.name for path in folder.glob(".*")] == []


def test_with_an_oracle(world):
    folder, _ = world
    plain, helped = folder / "plain.jsonl", folder / "helped.jsonl"
    first = find_candidates(asked(folder), corpus(folder), COUNT, plain)
    second = find_candidates(asked(folder), corpus(folder), COUNT, helped, oracle=True)
    assert first == second  # counted before help
    times = 0
    for one, other in zip(rows(plain), rows(helped), strict=True):
        if other["question"] == "zzz":
            assert one == other
            continue
        wanted = 2 if "name31" in other["question"] else 1
        assert len(other["pos_index"]) == wanted
        # Only the last documents that are not right made room.
        missing = wanted - len(one["pos_index"])
        free = [i for i in range(COUNT) if i not in one["pos_index"]]
        pairs = zip(one["docs"], other["docs"], strict=True)
        changed = [i for i, (a, b) in enumerate(pairs) if a != b]
        assert changed == free[len(free) - missing :]
        times += bool(missing)
    assert times > 1
    assert "not in the corpus" in rows(helped)[-1]["docs"]


def test_right_documents_that_are_not_there_are_counted(world):
    folder, texts = world
    record = {"docs": [texts[1], texts[2]], "question": "Of name1?", "id": "7"}
    record |= {"pos_index": [0, 1], "missing": 1}
    write(folder / "asked.jsonl", [record])
    asked = open_records(folder / "asked.jsonl")
    for oracle, missing in ((False, 2), (True, 1)):
        out = folder / f"{oracle}.jsonl"
        found = find_candidates(asked, corpus(folder), 2, out, oracle=oracle)
        assert (found.known, found.some, found.complete) == (1, 1, 0)
        assert "the records of 1 lack right documents" in str(found)
        (row,) = rows(out)
        assert row["missing"] == missing and row["id"] == "7"
        assert "answers" not in row


@pytest.mark.parametrize("block", [1, 7, 41])
def test_blocks_make_no_difference(world, monkeypatch, block):
    folder, _ = world
    find_candidates(asked(folder), corpus(folder), COUNT, folder / "one.jsonl")
    monkeypatch.setattr(candidates, "BLOCK", block)
    find_candidates(asked(folder), corpus(folder), COUNT, folder / "many.jsonl")
    assert (folder / "one.jsonl").read_bytes() == (folder / "many.jsonl").read_bytes()


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("number", [1, 3, 6, 9, 12, 14, 19])
def test_killed_at_any_step_it_goes_on(world, monkeypatch, number):
    folder, _ = world
    monkeypatch.setattr("clara_jax.data.candidates.CHUNK", 4)
    monkeypatch.setattr(candidates, "BLOCK", 10)
    find_candidates(asked(folder), corpus(folder), COUNT, folder / "a.jsonl")
    count, ranked = 0, 0
    replace, commit, ranker = os.replace, Work.commit, candidates.Bm25

    def step():
        nonlocal count
        count += 1
        if count == number:
            raise Killed

    def replaced(*arguments):
        step()
        replace(*arguments)

    def committed(work):
        step()
        commit(work)

    def counted(*arguments):
        nonlocal ranked
        ranked += 1
        return ranker(*arguments)

    def run():
        out = folder / "b.jsonl"
        return find_candidates(asked(folder), corpus(folder), COUNT, out)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        patch.setattr(Work, "commit", committed)
        with pytest.raises(Killed):
            run()
    assert not (folder / "b.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "Bm25", counted)
        run()
    # Six blocks are counted, then ranked; each is kept.
    assert ranked == min(6, max(14 - number, 0))
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_killed_just_before_its_end(world, monkeypatch):
    folder, _ = world
    with monkeypatch.context() as patch:

        def killed(*_, **__):
            raise Killed

        patch.setattr("clara_jax.data.candidates.shutil.rmtree", killed)
        with pytest.raises(Killed):
            find_candidates(asked(folder), corpus(folder), COUNT, folder / "a.jsonl")
    found = find_candidates(asked(folder), corpus(folder), COUNT, folder / "a.jsonl")
    assert found.questions == 19
    assert not list(folder.glob(".*"))


def test_one_process_at_a_time(world):
    folder, _ = world
    out = folder / "a.jsonl"
    with (
        open_work(folder / ".a.jsonl.work"),
        pytest.raises(ClaraError, match="another process is at work here; wait"),
    ):
        find_candidates(asked(folder), corpus(folder), COUNT, out)
    find_candidates(asked(folder), corpus(folder), COUNT, out)
    assert out.exists()


def test_any_search_will_do(world):
    folder, texts = world

    def search(questions, count):
        return [[f"for {q}", *texts[: count - 1]] for q in questions]

    found = find_candidates(
        asked(folder), Searched(search, 60, "s1"), 3, folder / "out.jsonl"
    )
    assert found.count == 3
    for row in rows(folder / "out.jsonl"):
        assert row["docs"] == [f"for {row['question']}", *texts[:2]]


def run(capsys, *arguments):
    status = main(["candidates", *map(str, arguments)])
    captured = capsys.readouterr()
    errors = [x for x in captured.err.splitlines() if x.startswith("error: ")]
    assert len(errors) == (status == 1) and "Traceback" not in captured.err
    return status, captured.out + "".join(errors)


def test_the_command(world, capsys):
    folder, _ = world
    questions = ("--records", folder / "questions.jsonl")
    documents = ("--corpus", folder / "docs.jsonl", folder / "more.jsonl")
    out = ("--out", folder / "new" / "out.jsonl")
    status, said = run(capsys, *questions, *documents, "--count", 7, *out)
    assert status == 0 and "7 candidates for each of 19 questions" in said
    assert "with known right documents, all of them were found for" in said
    assert all(len(row["docs"]) == 7 for row in rows(folder / "new" / "out.jsonl"))
    status, said = run(capsys, *questions, *documents, *out)
    assert status == 1 and "out.jsonl: exists already" in said


def test_questions_without_documents_get_some(world, capsys):
    folder, texts = world
    asked = [{"query": f"Of name{i}?", "golden": [f"a{i}"]} for i in (3, 5)]
    write(folder / "alone.jsonl", asked)
    questions = ("--records", folder / "alone.jsonl")
    fields = ("--fields", "question=query,answers=golden")
    documents = ("--corpus", folder / "docs.jsonl", folder / "more.jsonl")
    out = ("--out", folder / "out.jsonl")
    status, said = run(capsys, *questions, *fields, *documents, "--count", 2, *out)
    assert status == 0 and "which documents are right is not known" in said
    records = list(open_records(folder / "out.jsonl"))
    assert [r.pair() for r in records] == [
        ("Of name3?", "a3", ("a3",)),
        ("Of name5?", "a5", ("a5",)),
    ]
    assert [r.documents[0] for r in records] == [texts[3], texts[5]]


def test_errors_are_one_line(world, capsys, monkeypatch):
    folder, texts = world
    questions = ("--records", folder / "questions.jsonl")
    documents = ("--corpus", folder / "docs.jsonl")
    out = ("--out", folder / "out.jsonl")

    def said(*arguments):
        status, text = run(capsys, *arguments)
        assert status == 1 and not (folder / "out.jsonl").exists()
        return text

    assert "give either --corpus or --store" in said(*questions, *out)
    both = said(*questions, *documents, "--store", "s", "--model", "m", *out)
    assert "give either --corpus or --store" in both
    alone = said(*questions, "--store", folder, *out)
    assert "--store and --model belong together" in alone
    lost = said("--records", folder / "none.jsonl", *documents, *out)
    assert "none.jsonl: no such file" in lost
    assert "none: no such file" in said(*questions, "--corpus", folder / "none", *out)
    much = said(*questions, *documents, "--count", 41, *out)
    assert "count 41 is above the 40 documents of the corpus" in much
    write(folder / "texts.jsonl", [{"text": text} for text in texts[:3]])
    none = said("--records", folder / "texts.jsonl", *documents, *out)
    assert "texts.jsonl: holds no questions" in none
    (folder / "bad.jsonl").write_text('{"docs": ["d"], "question": {"q": 1}}\n')
    bad = said("--records", folder / "bad.jsonl", *documents, *out)
    assert "bad.jsonl:1: field" in bad

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Work, "write_lines", full)
        assert "out.jsonl: the disk is full" in said(*questions, *documents, *out)
        patch.setattr(os, "fsync", full)
        other = said(*questions, *documents, "--out", folder / "other.jsonl")
        assert "rank: the disk is full" in other
    other = said(*questions, *documents, "--count", 3, *out)
    assert ".out.jsonl.work: was begun with other settings or inputs (count)" in other
    other = said(*questions, "--fields", "question=answers", *documents, *out)
    assert "was begun with other settings or inputs (records)" in other


def test_a_store_searched_by_its_model(tmp_path, capsys, monkeypatch):
    from toy_folder import DOCUMENTS, QUESTION, write_toy

    from clara_jax.compress.__main__ import main as compress

    write_toy(tmp_path / "model")
    write(tmp_path / "docs.jsonl", DOCUMENTS)
    store, model = ("--store", tmp_path / "store"), ("--model", tmp_path / "model")
    given = [*model, "--corpus", tmp_path / "docs.jsonl", *store]
    assert compress([str(word) for word in given]) == 0
    text = "Ada Bell\nAda Bell was born in Corin"
    record = {"docs": [text], "question": QUESTION, "answer": "Corin"}
    write(tmp_path / "questions.jsonl", [record])
    questions = ("--records", tmp_path / "questions.jsonl", "--count", 2)
    out = tmp_path / "out.jsonl"
    capsys.readouterr()
    status, said = run(capsys, *questions, *store, *model, "--oracle", "--out", out)
    assert status == 0 and "2 candidates for each of 1 questions" in said
    (row,) = rows(out)
    assert text in row["docs"] and len(row["docs"]) == 2 and row["pos_index"]
    status, said = run(
        capsys, *questions[:2], *store, *model, "--out", tmp_path / "more.jsonl"
    )
    assert status == 1 and "count 20 is above the 3 documents" in said
