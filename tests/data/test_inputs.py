"""Checksums of inputs: of files and folders, and what is not read again."""

import json
import os

import pytest
from tqdm import tqdm

from clara_jax.data import inputs
from clara_jax.data.inputs import INPUTS, Inputs
from clara_jax.data.progress import silent
from clara_jax.errors import ClaraError
from clara_jax.files import checksum


def test_the_size_and_content_of_a_file(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 3_000_000)
    other.write_bytes(b"a" * 3_000_000)
    read = []
    assert checksum(one, read.append) == checksum(other)
    assert checksum(one)[0] == sum(read) == 3_000_000 and len(read) > 1
    other.write_bytes(b"a" * 2_999_999 + b"b")
    assert checksum(one) != checksum(other)
    with pytest.raises(ClaraError, match="none: No such file"):
        checksum(tmp_path / "none")


def write(folder):
    (folder / "tfds" / "1.0.0").mkdir(parents=True)
    for name in ("a.jsonl", "tfds/1.0.0/x", "tfds/y"):
        (folder / name).write_text(name)
    return [folder / "a.jsonl", f"{folder / 'tfds'}#test"]


def test_files_and_folders(tmp_path):
    paths = write(tmp_path)
    first = Inputs(paths, [], silent).checksums
    assert len(set(first)) == 2
    assert first[0] == checksum(tmp_path / "a.jsonl")[1]
    (tmp_path / "tfds" / "y").write_text("z")
    second = Inputs(paths, [], silent).checksums
    assert second[0] == first[0] and second[1] != first[1]
    (tmp_path / "tfds" / "y").rename(tmp_path / "tfds" / "z")
    assert Inputs(paths, [], silent).checksums[1] not in (first[1], second[1])
    with pytest.raises(ClaraError, match="none: No such file"):
        Inputs([tmp_path / "none"], [], silent)


def test_what_is_known_is_not_read(tmp_path, monkeypatch):
    paths = write(tmp_path)
    known = tmp_path / "known"
    known.mkdir()
    first = Inputs(paths, [known], silent)
    (known / INPUTS).write_text(json.dumps(first.files))
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "checksum", lambda *_: pytest.fail("is read"))
        again = Inputs(paths, [tmp_path / "none", known], silent)
    assert again.checksums == first.checksums and again.files == first.files
    # As long as before, but later.
    path = tmp_path / "a.jsonl"
    path.write_text("b.jsonl")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    bars = []

    def recorded(**options):
        bars.append(tqdm(disable=True, **options))
        return bars[-1]

    changed = Inputs(paths, [known], recorded)
    assert changed.checksums[0] != first.checksums[0]
    assert changed.checksums[1] == first.checksums[1]
    assert [bar.total for bar in bars] == [7]
