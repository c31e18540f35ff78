"""What is written comes back; processes that die while they write, and full disks."""

import random
import signal
import time

import numpy as np
import pytest
from toy_store import (
    ACTIONS,
    contents,
    copy_tree,
    fails_at,
    make_toy,
    run,
    start,
    toy_pieces,
    toy_settings,
    toy_vectors,
    tree,
    without_ids,
    write_new,
    write_store,
)

from clara_jax.documents import Document, fields_of
from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Job, Store, check, delete
from clara_jax.search.codecs import decode, encode
from clara_jax.search.rows import RESERVED, own_columns

METADATA = [
    {"on": True, "year": 2020, "price": 1.5, "team": "legal", "tags": ["a", "b"]},
    {"on": False, "year": -(2**63), "price": -1e300, "team": "", "tags": []},
    {"on": True, "year": 2**63 - 1, "price": 3, "team": "é\u0000\u2028", "tags": ["𝔘"]},
    {},
    {"pages": [1, 2], "shares": [0.5, 2], "flags": [True, False], "more": {"a": [{}]}},
    {"pages": [], "shares": [], "flags": [], "more": [1, "x", [None]]},
    {"more": "text", "huge": 2**64, "any": 1},
    {"more": 0.5, "any": "x"},
    {"more": False, "any": [1], "empty": []},
]


def add(place, documents, mode="add", name="more"):
    given = place, toy_settings(), 1, {"name": name}, mode, fields_of(documents)
    job = Job.begin(*given)
    job.write(0, toy_vectors(len(documents)), documents)
    return job.commit()


def metadata_of(place):
    store = Store.open(place)
    return [piece.metadata for piece in store.pieces(store.ids)]


def same(found, expected):
    """Compare JSON values and their types: 1 is not True, nor 1.0."""
    return repr(found) == repr(expected)


@pytest.mark.parametrize("dtype", CODECS)
def test_vectors_as_written(tmp_path, dtype):
    vectors = toy_vectors(4)
    store = write_store(tmp_path / "s", toy_settings(dtype), vectors, toy_pieces(4), 3)
    found = store.arrays(store.ids, check=True)
    codes, scales = encode(vectors, dtype, store.center)
    np.testing.assert_array_equal(found["codes"], codes)
    assert found["codes"].dtype == codes.dtype
    assert ("scales" in found) is (scales is not None)
    expected = decode(codes, scales, dtype, 6, center=store.center)
    np.testing.assert_array_equal(store.vectors(store.ids), expected)
    norms = np.linalg.norm(expected, axis=(1, 2))
    np.testing.assert_allclose(found["norm"], norms, rtol=1e-6)
    assert check(store.place) == []


def test_memory_layout_does_not_matter(tmp_path):
    vectors, pieces = toy_vectors(4), toy_pieces(4)
    write_store(tmp_path / "a", toy_settings(), vectors, pieces)
    write_store(tmp_path / "b", toy_settings(), np.asfortranarray(vectors), pieces)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_vectors_and_documents_of_one_number(tmp_path):
    job = Job.begin(tmp_path / "s", toy_settings(), 1, {})
    with pytest.raises(ClaraError, match=r"was given \(3, 2, 6\) for 2 pieces"):
        job.write(0, toy_vectors(3), toy_pieces(2))
    with pytest.raises(ClaraError, match=r"2 vectors of width 6.*\(1, 2, 5\)"):
        job.write(0, toy_vectors(1, width=5), toy_pieces(1))
    with pytest.raises(ClaraError, match=r"was given \(1, 3, 6\)"):
        job.write(0, toy_vectors(1, count=3), toy_pieces(1))


def test_numbers_that_are_not_finite(tmp_path):
    vectors = toy_vectors(2)
    vectors[1, 0, 3] = np.nan
    with pytest.raises(ClaraError, match="not finite"):
        write_store(tmp_path / "s", toy_settings("float32"), vectors, toy_pieces(2))


def test_shards_of_any_size_and_none(tmp_path):
    sizes = [2, 0, 5]
    fields = {"number": "int"}
    job = Job.begin(tmp_path / "s", toy_settings("int4"), 3, {}, fields=fields)
    for k in job.missing():
        pieces = toy_pieces(sizes[k], name=f"n{k}-")
        job.write(k, toy_vectors(sizes[k]), pieces)
    store = job.commit()
    assert len(store) == 7
    assert [piece.id for piece in store.pieces([6, 1, 2])] == ["n2-4", "n0-1", "n2-0"]
    assert check(store.place) == []
    assert not [name for name in tree(tmp_path / "s") if name.endswith(".json")][1:]


def test_metadata_come_back(tmp_path):
    pieces = [Document(f"t{i}", f"d{i}", metadata=m) for i, m in enumerate(METADATA)]
    vectors = toy_vectors(len(pieces))
    store = write_store(tmp_path / "s", toy_settings(), vectors, pieces, 4)
    expected = [dict(metadata) for metadata in METADATA]
    expected[2]["price"], expected[4]["shares"] = 3.0, [0.5, 2.0]
    for found, wanted in zip(metadata_of(store.place), expected, strict=True):
        assert same(dict(sorted(found.items())), dict(sorted(wanted.items())))
    types = {
        f.name: str(f.type) for f in store.dataset.schema if f.name not in RESERVED
    }
    assert types == {
        "on": "bool",
        "year": "int64",
        "price": "double",
        "team": "string",
        "tags": "list<item: string>",
        "pages": "list<item: int64>",
        "shares": "list<item: double>",
        "flags": "list<item: bool>",
        **dict.fromkeys(("more", "huge", "any"), "string"),
        "empty": "list<item: string>",
    }
    assert store.where("year > 2020").tolist() == [2]
    assert store.where("price = 3 or team = 'legal'").tolist() == [0, 2]
    assert store.where("array_has(tags, 'b')").tolist() == [0]
    assert store.where("year is null").tolist() == [*range(3, 9)]
    assert check(store.place) == []


def test_fields_without_values(tmp_path):
    pieces = [Document("a", "a", metadata={"x": None}), Document("b", "b")]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(2), pieces)
    assert store.where("x is null").tolist() == [0, 1]
    # Null and absent are one.
    assert metadata_of(store.place) == [{}, {}]
    add(store.place, [Document("c", "c", metadata={"x": "text"})])
    assert metadata_of(store.place)[2] == {"x": "text"}


def test_names_that_the_store_has_itself(tmp_path):
    names = [
        *RESERVED,
        "_rowid",
        "_rowaddr",
        "_id",
        "ID",
        "own_id",
        "a.b",
        "a_b",
        "A_B",
    ]
    names += ["", ".", "é", "with space", "select", "x'y", 'x"y', "\u2028", "own_", "`"]
    metadata = {name: i for i, name in enumerate(names)}
    pieces = [Document("t", "d", metadata=metadata), Document("u", "e")]
    store = write_store(tmp_path / "s", toy_settings(), toy_vectors(2), pieces)
    assert metadata_of(store.place) == [metadata, {}]
    assert store.pieces([0])[0].id == "d"
    columns = [name.lower() for name in store.dataset.schema.names]
    assert len(columns) == len(set(columns))
    assert {"own_title", "own_text", "own_key", "own_codes"} <= set(columns)
    for name, (column, _) in own_columns(store.dataset.schema).items():
        assert store.where(f"`{column}` = {metadata[name]}").tolist() == [0]
    # Names that are new come beside those that are there.
    later = {"own_checksum_": 1, "a-b": 2, "a:b": 3, "id": 99, "rowid": 4}
    add(store.place, [Document("v", "f", metadata=later)])
    assert metadata_of(store.place) == [metadata, {}, later]
    assert check(store.place) == []


def test_new_fields_on_addition(tmp_path):
    place = make_toy(tmp_path / "s").place
    before = contents(place)
    metadata = {"number": 5, "year": 2024, "more": {"x": [1]}, "tags": ["a"]}
    store = add(place, [Document("n", "n", metadata=metadata)])
    assert contents(place)[:7] == before
    assert metadata_of(place)[7] == metadata
    assert store.where("year is null").tolist() == [*range(7)]
    assert store.where("year = 2024 and number = 5").tolist() == [7]
    add(place, [Document("m", "m", metadata={"year": 1, "on": True})], name="again")
    assert metadata_of(place)[7:] == [metadata, {"year": 1, "on": True}]
    assert check(place) == []


@pytest.mark.parametrize("value", ["text", 0.5, [1], {"a": 1}, True, 2**64])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_values_of_another_type(tmp_path, value, mode):
    place = make_toy(tmp_path / "s").place
    before = contents(place)
    with pytest.raises(
        ClaraError, match="field 'number' holds int, but the new documents have"
    ) as error:
        add(place, [Document("n", "n", metadata={"number": value, "new": 1})], mode)
    assert "\n" not in str(error.value)
    assert (contents(place), check(place)) == (before, [])
    assert "new" not in Store.open(place).fields


def test_values_that_a_wider_column_takes(tmp_path):
    pieces = [Document("a", "a", metadata={"x": 0.5, "y": [0.5], "z": {}})]
    place = write_store(tmp_path / "s", toy_settings(), toy_vectors(1), pieces).place
    add(place, [Document("b", "b", metadata={"x": 2, "y": [1], "z": 3})])
    assert same(metadata_of(place)[1], {"x": 2.0, "y": [1.0], "z": 3})


def test_metadata_that_are_not_as_told(tmp_path):
    fields = {"a": "int", "j": "json"}
    job = Job.begin(tmp_path / "s", toy_settings(), 1, {}, fields=fields)
    for metadata, said in (
        (
            {"b": 1},
            "bad.jsonl:7: cannot be kept .* not told of its field 'b'",
        ),
        ({"a": "x"}, "bad.jsonl:7: cannot be kept .Could not convert 'x'"),
        ({"a": 2**64}, "bad.jsonl:7: cannot be kept"),
        ({"j": {1, 2}}, "bad.jsonl:7: cannot be kept .*set is not JSON"),
        ({"j": "half \ud800"}, "bad.jsonl:7: "),
    ):
        piece = Document("text", "x", source="bad.jsonl:7", metadata=metadata)
        with pytest.raises(ClaraError, match=said) as error:
            job.write(0, toy_vectors(1), [piece])
        assert "\n" not in str(error.value)
    assert job.missing() == [0]


def test_metadata_with_half_a_surrogate_pair(tmp_path):
    for metadata, said in (
        ({"t": "half \ud800"}, "bad.jsonl:7: holds half of a surrogate pair"),
        ({"l": ["\udc00"]}, "bad.jsonl:7: holds half of a surrogate pair"),
        ({"half \ud800": 1}, r"the field 'half ..d800' has half of a surrogate pair"),
    ):
        piece = Document("text", "x", source="bad.jsonl:7", metadata=metadata)
        with pytest.raises(ClaraError, match=said):
            write_store(
                tmp_path / str(metadata), toy_settings(), toy_vectors(1), [piece]
            )


def prepare(path, action):
    """What an action is done to: no store, or one with deleted rows."""
    if action != "write_new":
        make_toy(path, 7)
        delete(path, ["d2"])
    return path


def leftovers(path):
    """What a check finds, but for a job that is not finished."""
    return [line for line in check(path) if "documents are still being put" not in line]


def goes_on(path, action, before, after):
    """A store that was left halfway is whole, and the same action finishes."""
    done = False
    if before or any(path.glob("_versions/*.manifest")):
        now = contents(path)
        done = without_ids(now) == after
        assert done or now == before
        assert leftovers(path) == []
    # What was deleted already cannot be deleted again.
    if not (done and action == "delete_some"):
        ACTIONS[action](path)
    assert without_ids(contents(path)) == after
    assert check(path) == []
    assert not list(path.glob("_jobs/*/*"))


def before_and_after(tmp_path, action):
    base = prepare(tmp_path / "base", action)
    before = contents(base) if base.exists() else []
    whole = copy_tree(base, tmp_path / "whole")
    ACTIONS[action](whole)
    return base, before, without_ids(contents(whole))


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_killed_before_and_after_every_step(tmp_path, action):
    base, before, after = before_and_after(tmp_path, action)
    for step in range(200):
        path = copy_tree(base, tmp_path / f"{step}")
        status = run(action, path, die_at=step)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        goes_on(path, action, before, after)
    assert step >= 4
    assert without_ids(contents(path)) == after


@pytest.mark.parametrize("step", ["commit", "commit returns"])
@pytest.mark.parametrize("action", ["write_new", "write_added", "delete_some"])
def test_killed_at_the_commit(tmp_path, action, step):
    base, before, after = before_and_after(tmp_path, action)
    assert run(action, base, die_at=step) == -signal.SIGKILL
    if base.joinpath("_versions").exists():
        assert without_ids(contents(base)) == (
            after if "returns" in step else without_ids(before)
        )
    goes_on(base, action, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_random_moments(tmp_path, action):
    base, before, after = before_and_after(tmp_path, action)
    draw, kills = random.Random(0), 0
    for number in range(40):
        path = copy_tree(base, tmp_path / f"{number}")
        worker = start(action, path)
        time.sleep(draw.uniform(0, 0.15))
        worker.kill()
        kills += worker.wait() != 0
        goes_on(path, action, before, after)
    assert kills > 0


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """What was written is never written again."""
    write_new(tmp_path / "whole", shards=12)
    path, draw, kills = tmp_path / "s", random.Random(0), 0
    done: dict[str, bytes] = {}
    while run("write_new", path, shards=12, die_at=draw.randrange(10, 30)):
        kills += 1
        now = {note.name: note.read_bytes() for note in path.glob("_jobs/*/0*")}
        if not (path / "_versions").exists():  # once there is a store they go
            assert done.items() <= now.items()
        assert kills < 50
        done = now
    assert kills > 2
    assert contents(path) == contents(tmp_path / "whole")
    assert check(path) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_the_disk_is_full_before_every_step(tmp_path, action):
    base, before, after = before_and_after(tmp_path, action)
    failures = 0
    for step in range(200):
        path = copy_tree(base, tmp_path / f"{step}")
        fails, met = fails_at(step, ACTIONS[action], path)
        failures += fails
        if not met:
            break
        if fails:
            if before:
                assert contents(path) == before
            assert not [n for n in tree(path) if n.rpartition("/")[2].startswith(".")]
            goes_on(path, action, before, after)
    assert failures >= 2
    assert without_ids(contents(path)) == after
