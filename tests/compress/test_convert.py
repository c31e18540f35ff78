"""Stores of the format before Lance, taken over as they are."""

import dataclasses
import json
import os

import numpy as np
import pytest
from toy_store import toy_pieces, toy_settings, toy_vectors

from clara_jax.documents import Document
from clara_jax.loading import find_model
from clara_jax.search import Job, Store, check
from clara_jax.search.codecs import center_of
from clara_jax.search.rows import encoded
from tests.compress.command_line import error, run, shards
from tests.compress.old_store import write_old_store

ROWS = 9
DELETED = [0, 3, 4, 8]
CODECS = ("bfloat16", "int8", "int4")


def documents():
    """Some with metadata of all kinds, some with none, one in two parts."""
    first, second, third, *others = toy_pieces(ROWS - 1, name="old")
    fields = {"tags": ["a", "b"], "deep": {"x": [1, None]}, "none": None, "source": 1}
    first = dataclasses.replace(first, metadata={**fields, "number": 1.5})
    second = dataclasses.replace(second, metadata={"big": 2**70, "mixed": 1})
    third = dataclasses.replace(third, metadata={"big": 1, "mixed": "ü\n"})
    halves = [
        Document("half", "whole", start=4 * i, part=i + 1, parts=2) for i in range(2)
    ]
    return [halves[0], first, halves[1], second, third, *others]


def make(folder, codec="bfloat16", **how):
    vectors = toy_vectors(ROWS)
    center = center_of(vectors, codec)
    settings = toy_settings(codec, center=center, compute="float32")
    arrays = encoded(vectors, settings)
    write_old_store(folder, settings, arrays, documents()[:ROWS], **how)
    return settings, arrays


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("deleted", [(), DELETED])
def test_everything_is_taken_over(tmp_path, capsys, codec, deleted):
    old, new = tmp_path / "old", tmp_path / "new"
    settings, arrays = make(old, codec, deleted=deleted)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    status, out, _ = run(capsys, "--store", new, "--convert", old)
    kept = [i for i in range(ROWS) if i not in deleted]
    assert status == 0 and out.startswith(f"{new}: {len(kept)} pieces, ")
    store = Store.open(new)
    assert store.settings == settings and len(store) == len(kept)
    for name, array in store.arrays(store.ids, check=True).items():
        np.testing.assert_array_equal(array, arrays[name][kept])
    expected = [
        dataclasses.replace(
            document,
            metadata={k: v for k, v in document.metadata.items() if v is not None},
        )
        for document in (documents()[i] for i in kept)
    ]
    assert store.pieces(store.ids) == expected
    assert check(new) == []
    after = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert after == before
    assert run(capsys, "--store", new, "--convert", old)[0] == 0  # again: nothing
    assert Store.open(new).version == store.version


def test_the_model_is_found_from_wherever_the_new_store_lies(tmp_path, capsys):
    make(tmp_path / "old")  # whose model is ../model
    (tmp_path / "model").mkdir()
    for new in (tmp_path / "new", tmp_path / "much" / "deeper" / "down" / "new"):
        assert run(capsys, "--store", new, "--convert", tmp_path / "old")[0] == 0
        model, base = find_model(str(new), Store.open(new).settings)
        assert os.path.samefile(model, tmp_path / "model") and base == ""


def test_stopped_it_goes_on(tmp_path, capsys, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    make(old, shards=4)
    write, written = Job.write_rows, []

    def stop(self, k, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(k)
        write(self, k, *rest)

    monkeypatch.setattr(Job, "write_rows", stop)
    assert run(capsys, "--store", new, "--convert", old)[0] == 130
    assert shards(new) == ["000000.json", "000001.json"]
    monkeypatch.undo()
    assert run(capsys, "--store", new, "--convert", old)[0] == 0
    store = Store.open(new)
    assert len(store) == ROWS and check(new) == []


def test_a_store_without_documents_left_is_taken_over(tmp_path, capsys):
    make(tmp_path / "old", deleted=range(ROWS))
    status, out, _ = run(
        capsys, "--store", tmp_path / "new", "--convert", tmp_path / "old"
    )
    assert status == 0 and ": 0 pieces, " in out
    assert len(Store.open(tmp_path / "new")) == 0


def test_damage_is_one_line_that_names_the_file(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    make(old, "int8", deleted=DELETED)
    for path in sorted(old.rglob("*")):
        if not path.is_file() or path.name in ("texts.npy", "ids.npy"):
            continue
        data = path.read_bytes()
        middle = len(data) // 2
        for bad in (
            data[:middle],
            data[:middle] + b"\1\2\3" + data[middle + 3 :],
            None,
        ):
            if bad is None:
                path.unlink()
            else:
                path.write_bytes(bad)
            said = error(capsys, "--store", new, "--convert", old)
            assert str(path) in said or str(path.parent) in said
            assert not (new / "_versions").exists()
            path.write_bytes(data)
    assert run(capsys, "--store", new, "--convert", old)[0] == 0
    assert len(Store.open(new)) == ROWS - len(DELETED)


def test_old_stores_are_told_from_others(tmp_path, capsys):
    old = tmp_path / "old"
    make(old)
    said = error(capsys, "--store", old, "--check")
    assert f"--convert {old} --store NEW" in said
    (tmp_path / "plain").mkdir()
    for place in ("plain", "nowhere"):
        said = error(capsys, "--store", tmp_path / "n", "--convert", tmp_path / place)
        assert f"{place}: holds no store.json" in said
    values = json.loads((old / "store.json").read_text())
    (old / "store.json").write_text(json.dumps({**values, "format": 7}))
    said = error(capsys, "--store", tmp_path / "n", "--convert", old)
    assert "store.json: is not of format 1" in said
    assert not (tmp_path / "n").exists()


def test_a_store_of_other_documents_is_not_written_over(tmp_path, capsys, copy):
    make(tmp_path / "old")
    version = Store.open(copy).version
    said = error(capsys, "--store", copy, "--convert", tmp_path / "old")
    assert "holds a finished store of other documents" in said
    assert Store.open(copy).version == version
