"""A store that is there: more documents, fewer, versions, checks, wrong fields."""

import datetime
import json
import time

import pytest

from clara_jax.compress.__main__ import main
from clara_jax.errors import ClaraError
from clara_jax.search import Store, compact, delete, versions
from tests.compress.command_line import error, job_files, run


@pytest.fixture
def given(model, copy, tmp_path):
    """What makes arguments that compress some lines into a store."""

    def make(*documents, name="new.jsonl", store=copy):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, documents)))
        return ("--model", model, "--corpus", path, "--store", store)

    return make


def pieces(store, condition):
    opened = Store.open(store)
    return opened.pieces(opened.where(condition))


def test_documents_are_added_replaced_deleted_and_compacted(given, copy, capsys):
    before = Store.open(copy)
    command = given({"id": "new", "text": "Ada Bell"}, {"id": "d0", "text": "Edo"})
    said = error(capsys, *command, "--add")
    assert "new.jsonl:2: the store already has a document with the id 'd0'" in said
    assert Store.open(copy).version == before.version
    status, _, err = run(capsys, *command, "--replace")
    assert status == 0 and "1 of 2 documents have ids that the store does not" in err
    store = Store.open(copy)
    assert len(store) == len(before) + 1
    assert [piece.text for piece in pieces(copy, "id = 'd0'")] == ["Edo"]
    # What was not replaced has the ids that it had.
    kept = before.ids[store.has(before.ids)]
    assert len(kept) == len(before) - 1 and store.ids[-1] > before.ids[-1]
    assert store.pieces(kept) == before.pieces(kept)
    added = (*given({"text": "Hana Iver"}, name="other.jsonl"), "--add")
    assert run(capsys, *added)[0] == 0
    assert len(Store.open(copy)) == len(before) + 2
    status, _, err = run(capsys, *added)
    assert status == 0 and "nothing to do" in err  # the same job, not a second one
    assert "no document" in error(capsys, "--store", copy, "--delete", "d1", "none")
    gone = ("--delete", "d1", "other.jsonl:1")
    status, out, _ = run(capsys, "--store", copy, *gone)
    assert status == 0 and "deleted 2 documents in 2 pieces" in out
    left = Store.open(copy)
    status, out, _ = run(capsys, "--store", copy, "--compact")
    assert status == 0 and f"{len(before)} pieces are left in " in out
    store = Store.open(copy)
    assert store.ids.tolist() == left.ids.tolist() and len(store) == len(before)
    assert run(capsys, "--store", copy, "--check")[0] == 0
    status, _, err = run(capsys, *added)  # deleted since: no longer the same
    assert status == 0 and "nothing to do" not in err
    assert len(pieces(copy, "id = 'other.jsonl:1'")) == 1


def test_versions_are_listed_and_kept_for_so_many_days(given, copy, capsys):
    rows = len(Store.open(copy))
    assert run(capsys, *given({"text": "Edo Falk"}), "--add")[0] == 0
    delete(copy, ["d0", "d1"])
    known = [number for number, *_ in versions(copy)]
    status, out, _ = run(capsys, "--store", copy, "--versions")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and [int(line[0]) for line in lines] == known
    assert [int(line[-2]) for line in lines] == [rows, rows + 1, rows - 1]
    assert all(line[-1] == "pieces" for line in lines)
    status, _, _ = run(capsys, "--store", copy, "--compact", "--keep", 1)
    newest = Store.open(copy)
    assert status == 0 and {*known} < {number for number, *_ in versions(copy)}
    old = Store.open(copy, at=known[0])
    assert (len(old), len(newest)) == (rows, rows - 1)
    assert old.pieces(old.where("id = 'd0'"))[0].metadata == {"year": 0}
    assert run(capsys, "--store", copy, "--compact")[0] == 0
    ((last, _, count),) = versions(copy)
    assert count == rows - 1 and Store.open(copy).version == last
    with pytest.raises(ClaraError, match=f"has no version 1; there are {last}$"):
        Store.open(copy, at=1)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs time zones of POSIX")
def test_times_of_versions_are_utc_wherever_one_is(copy, monkeypatch):
    expected = [made for _, made, _ in versions(copy)]
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert [made for _, made, _ in versions(copy)] == expected
    finally:
        monkeypatch.undo()
        time.tzset()
    assert expected[0].utcoffset() == datetime.timedelta(0)


def test_check_tells_what_is_wrong_in_lines(copy, capsys):
    status, out, _ = run(capsys, "--store", copy, "--check")
    assert status == 0 and "whole: " in out
    store = Store.open(copy)
    row = store.ids[3]
    (piece,) = store.pieces([row])
    codes = store.arrays([row])["codes"].tobytes()
    (path,) = (p for p in copy.glob("data/*") if codes in p.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.index(codes)] ^= 1
    path.write_bytes(data)
    status, out, _ = run(capsys, "--store", copy, "--check")
    assert status == 1 and out.startswith(f"{path}: ") and out.count("\n") == 1
    assert f"part {piece.part} of document '{piece.id}' is damaged" in out
    path.write_bytes(data[:-3])
    status, out, _ = run(capsys, "--store", copy, "--check")
    assert status == 1 and "truncated" in out and out.count("\n") == 1
    path.unlink()
    status, out, _ = run(capsys, "--store", copy, "--check")
    assert status == 1 and out == f"{path}: is missing\n"


def test_fields_of_ones_own_may_have_any_name_and_hold_anything(given, tmp_path):
    fields = {"source": "web", "codes": 7, "a.b": [1.5], "_rowid": None, "Text": "t"}
    fields |= {"mixed": [1, "one"], "deep": {"x": [None]}, "big": 2**70, "none": None}
    fields["own_source"] = "another"
    store = tmp_path / "own"
    command = given({"id": "x", "text": "Ada", **fields}, {"text": "Edo"}, store=store)
    assert main([str(a) for a in command]) == 0
    found, bare = pieces(store, "true")
    assert found.metadata == {k: v for k, v in fields.items() if v is not None}
    assert (found.source, bare.metadata) == ("new.jsonl:1", {})
    assert pieces(store, "own_source = 'web' and own_codes > 6") == [found]
    assert compact(store) >= 0 and pieces(store, "own_codes = 7") == [found]


def test_a_field_keeps_the_kind_that_it_began_with(given, copy, capsys):
    version = Store.open(copy).version
    wrong = given({"text": "Edo", "year": 1}, {"text": "Ada", "year": "last"})
    message = error(capsys, *wrong, "--add")
    assert "field 'year' holds int, but" in message and "text" in message
    assert "new.jsonl:2" in message
    assert Store.open(copy).version == version
    assert job_files(copy) == []
    right = given({"text": "Edo", "year": None, "team": ["law"]}, {"text": "Ada"})
    assert run(capsys, *right, "--add")[0] == 0
    assert [piece.text for piece in pieces(copy, "year is null")][-2:] == ["Edo", "Ada"]
    (found,) = pieces(copy, "array_has(team, 'law')")
    assert (found.text, found.metadata) == ("Edo", {"team": ["law"]})
    assert len(pieces(copy, "year >= 0 and year < 2")) >= 2


def test_what_is_refused_leaves_no_new_field_behind(given, copy, capsys):
    before = Store.open(copy)
    command = given({"id": "d0", "text": "Edo", "team": "law"})
    assert "already has a document" in error(capsys, *command, "--add")
    after = Store.open(copy)
    assert (after.version, after.fields) == (before.version, before.fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compact", "--keep", "0"), "'0' is not a number above 0"),
        (("--compact", "--check"), "not allowed with"),
        (("--convert", "old", "--versions"), "not allowed with"),
    ],
)
def test_edits_exclude_each_other(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["--store", "s", *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_options_of_one_edit_are_refused_with_others(copy, capsys):
    at = ("--store", copy)
    assert "--keep goes with --compact" in error(capsys, *at, "--keep", 3)
    assert "leave --keep out" in error(capsys, *at, "--check", "--keep", 3)
    assert "leave --codec out" in error(capsys, *at, "--versions", "--codec", "int8")
    for edit in ("--versions", "--compact", "--check"):
        said = error(capsys, "--store", copy.parent / "nowhere", edit)
        assert "nowhere: holds no store" in said


def test_fields_that_go_by_other_names_are_noted(copy, model, tmp_path, capsys):
    new = {"text": "Ada Bell", "id": "new", "source": "x", "a.b": 1}
    (tmp_path / "new.jsonl").write_text(json.dumps(new))
    how = ("--model", model, "--corpus", tmp_path / "new.jsonl", "--add")
    status, _, err = run(capsys, "--store", copy, *how)
    assert status == 0
    assert (
        "note: names of fields in conditions: own_source for 'source', a_b for" in err
    )
    assert len(Store.open(copy).where("own_source = 'x' and a_b = 1")) == 1


def test_more_days_than_there_were_are_all_kept(copy, capsys):
    before = {number for number, *_ in versions(copy)}
    assert run(capsys, "--store", copy, "--delete", "d1")[0] == 0
    assert run(capsys, "--store", copy, "--compact", "--keep", 10**9)[0] == 0
    assert before < {number for number, *_ in versions(copy)}
