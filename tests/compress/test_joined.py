"""One store from several hosts: on one file system, and each on its own."""

import json
import shutil

import pytest

from clara_jax.search import Store, check
from tests.compress.command_line import SMALL, error, job_files, run, shards


@pytest.fixture
def command(model, corpus):
    def make(store, *more):
        return ("--model", model, "--corpus", corpus, "--store", store, *SMALL, *more)

    return make


def test_several_parts_make_the_same_store(
    command, whole, tmp_path, capsys, content_of
):
    store = tmp_path / whole.name
    status, out, _ = run(capsys, *command(store, "--part", "2/2"))
    assert status == 0 and "part 2 of 2 is written" in out
    assert shards(store) and not (store / "_versions").exists()
    assert "is not finished" in error(capsys, "--store", store, "--check")
    status, out, _ = run(capsys, *command(store, "--part", "1/2"))
    assert status == 0 and "next:" in out
    assert content_of(store) == content_of(whole)
    status, _, err = run(capsys, *command(store, "--part", "2/2"))
    assert status == 0 and "nothing to do" in err


def test_fields_of_all_parts_go_to_the_same_columns(model, tmp_path, capsys):
    """The first process names them as they come, later ones as it has noted them."""
    lines = [{"id": f"d{i}", "text": "Ada", "z": i, "a": -i, "m": 0} for i in range(4)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = tmp_path / "store"
    files = ("--corpus", tmp_path / "docs.jsonl", "--shard-size", 2)
    for part in ("1/2", "2/2"):
        given = ("--model", model, "--store", store, *files, "--part", part)
        assert run(capsys, *given)[0] == 0
    opened = Store.open(store)
    found = [piece.metadata for piece in opened.pieces(opened.ids)]
    assert found == [{"z": i, "a": -i, "m": 0} for i in range(4)]


def test_parts_written_at_other_places_are_joined(
    command, whole, tmp_path, capsys, content_of
):
    # The model lies elsewhere from there.
    store, there = tmp_path / whole.name, tmp_path / "another" / "host" / "s"
    assert run(capsys, *command(store, "--part", "1/2"))[0] == 0
    assert run(capsys, *command(there, "--part", "2/2"))[0] == 0
    assert not {*shards(store)} & {*shards(there)}
    before = content_of_folder(there)
    status, out, _ = run(capsys, *command(store, "--part", "1/2", "--join", there))
    assert status == 0 and "next:" in out
    assert content_of(store) == content_of(whole)
    assert check(store) == [] and content_of_folder(there) == before
    shutil.rmtree(there)
    kept = Store.open(store)
    assert kept.pieces(kept.ids) == Store.open(whole).pieces(kept.ids)


def test_a_new_place_takes_all_parts_over(command, whole, tmp_path, capsys, content_of):
    places = [tmp_path / name for name in ("a", "b")]
    for number, place in enumerate(places, 1):
        assert run(capsys, *command(place, "--part", f"{number}/2"))[0] == 0
    store = tmp_path / whole.name
    status, out, _ = run(capsys, *command(store, "--join", *places))
    assert status == 0 and "compressed" not in out
    assert content_of(store) == content_of(whole)


def test_parts_of_another_job_are_not_joined(
    command, model, corpus, tmp_path, capsys, copy
):
    store, other = tmp_path / "store", tmp_path / "other"
    command_of = ("--model", model, "--corpus", corpus / "lines.jsonl", "--store")
    assert run(capsys, *command_of, other, *SMALL, "--part", "1/2")[0] == 0
    assert run(capsys, *command(store, "--part", "1/2"))[0] == 0
    before = content_of_folder(store)
    for place in (other, copy, tmp_path / "nowhere"):
        said = error(capsys, *command(store, "--part", "1/2", "--join", place))
        known = "holds no part of this job"
        assert (
            f"{place}: {'another job is under way' if place == other else known}"
            in said
        )
    assert content_of_folder(store) == before
    # Where nothing was written, a refused one leaves nothing that is in the way.
    new = tmp_path / "new"
    assert "holds no part" in error(capsys, *command(new, "--join", tmp_path / "no"))
    assert not list(new.glob("_jobs/*"))


def test_a_file_missing_where_it_was_written_is_not_taken_for_there(
    command, whole, tmp_path, capsys, content_of
):
    store, there = tmp_path / whole.name, tmp_path / "there"
    assert run(capsys, *command(store, "--part", "1/2"))[0] == 0
    assert run(capsys, *command(there, "--part", "2/2"))[0] == 0
    path = sorted((there / "data").iterdir())[-1]
    path.rename(tmp_path / path.name)
    join = command(store, "--part", "1/2", "--join", there)
    assert path.name in error(capsys, *join)
    assert job_files(store, "job.json") and not (store / "_versions").exists()
    (tmp_path / path.name).rename(path)
    assert run(capsys, *join)[0] == 0
    assert content_of(store) == content_of(whole)


def content_of_folder(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
