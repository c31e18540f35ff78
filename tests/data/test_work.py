"""Checksums of inputs: of files and folders, and what is not read again."""

import json
import os

import pytest
from tqdm import tqdm

from clara_jax.data import work
from clara_jax.data.work import INPUTS, checksums, silent
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
    first = checksums(paths, silent)[0]
    assert len(set(first)) == 2
    assert first[0] == checksum(tmp_path / "a.jsonl")[1]
    (tmp_path / "tfds" / "y").write_text("z")
    second = checksums(paths, silent)[0]
    assert second[0] == first[0] and second[1] != first[1]
    (tmp_path / "tfds" / "y").rename(tmp_path / "tfds" / "z")
    assert checksums(paths, silent)[0][1] not in (first[1], second[1])
    with pytest.raises(ClaraError, match="none: No such file"):
        checksums([tmp_path / "none"], silent)


def test_what_is_known_is_not_read(tmp_path, monkeypatch):
    paths = write(tmp_path)
    known = tmp_path / "known"
    known.mkdir()
    first, files = checksums(paths, silent, [known])
    (known / INPUTS).write_text(json.dumps(files))
    with monkeypatch.context() as patch:
        patch.setattr(work, "checksum", lambda *_: pytest.fail("is read"))
        again = checksums(paths, silent, [tmp_path / "none", known])
    assert again == (first, files)
    # As long as before, but later.
    path = tmp_path / "a.jsonl"
    path.write_text("b.jsonl")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    bars = []

    def recorded(**options):
        bars.append(tqdm(disable=True, **options))
        return bars[-1]

    changed, _ = checksums(paths, recorded, [known])
    assert changed[0] != first[0] and changed[1] == first[1]
    assert [bar.total for bar in bars] == [7]


def test_a_file_of_lines_is_one_for_every_reader(tmp_path):
    values = [{"text": "one\u2028two"}, {"text": "three\x85four"}]
    path = tmp_path / "out.jsonl"
    with work.open_work(tmp_path / "work") as opened:
        opened.write_lines(path, "write", 2, 1, lambda begin, end: values[begin:end])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == values
