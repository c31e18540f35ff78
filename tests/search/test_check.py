import json

import numpy as np
import pytest
from toy_store import (
    copy_tree,
    make_toy,
    start,
    toy_pieces,
    toy_settings,
    toy_vectors,
    tree,
    write_added,
)

from clara_jax.errors import ClaraError
from clara_jax.search import CODECS, Job, check, delete
from clara_jax.search.manifest import json_bytes


@pytest.mark.parametrize("dtype", CODECS)
def test_a_whole_store(tmp_path, dtype):
    path = make_toy(tmp_path / "s", dtype=dtype).path
    delete(path, ["d2"])
    before, said = tree(path), []
    assert check(path, lambda *numbers: said.append(numbers)) == []
    assert tree(path) == before
    sizes = sum(
        len(data) for name, data in before.items() if name[:7] == "shards/" if data
    )
    assert said[-1] == (sizes, sizes)
    assert said == sorted(said)


@pytest.mark.parametrize("dtype", CODECS)
def test_a_flipped_bit_anywhere(tmp_path, dtype):
    """Each kind of file, at its beginning, in the middle and at its end."""
    path = make_toy(tmp_path / "s", 4, dtype).path
    delete(path, ["d2"])
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len({file.name for file in files}) == 8 + (dtype != "bfloat16")
    for file in files:
        data = file.read_bytes()
        for place in (0, len(data) // 3, len(data) // 2, len(data) - 1):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            found = check(path)
            assert len(found) == 1, (file, place, found)
            assert found[0].startswith(f"{file}: ")
            assert "\n" not in found[0]
        file.write_bytes(data)
    assert check(path) == []


def test_every_byte_of_the_manifest(tmp_path):
    path = make_toy(tmp_path / "s", 1).path
    file = path / "store.json"
    data = file.read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        # Another space is the same JSON; nothing else may pass.
        if check(path) == []:
            assert json.loads(flipped) == json.loads(data)


def test_sizes_and_missing_files(tmp_path):
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000001"
    (shard / "norms.npy").write_bytes((shard / "norms.npy").read_bytes()[:-4])
    (shard / "texts.npy").unlink()
    with (shard / "pieces.arrow").open("ab") as file:
        file.write(b"more")
    (shard / "notes.txt").write_text("mine")
    found = sorted(check(path))
    assert [line.split(" (")[0] for line in found] == [
        f"{shard / 'norms.npy'}: is truncated",
        f"{shard / 'notes.txt'}: does not belong to the store",
        f"{shard / 'pieces.arrow'}: has grown",
        f"{shard / 'texts.npy'}: is missing",
    ]


def test_a_missing_shard(tmp_path):
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000002"
    shard.rename(path / "elsewhere")
    assert check(path) == [f"{shard}: cannot be read (No such file or directory)"]


def test_the_note_of_a_shard(tmp_path):
    """Without its checksums, sizes and counts are still compared."""
    path = make_toy(tmp_path / "s").path
    shard = path / "shards" / "000001-000000"
    values = json.loads((shard / "shard.json").read_text())
    values["files"]["norms.npy"]["checksum"] = "0" * 32
    (shard / "shard.json").write_bytes(json_bytes(values))
    (shard / "ids.npy").unlink()
    found = check(path)
    assert len(found) == 2
    assert "ids.npy: is missing" in found[0]
    assert "shard.json: is damaged" in found[1]
    assert "by size only" in found[1]


def test_two_shards_changed_about(tmp_path):
    path = make_toy(tmp_path / "s", 6).path
    one, other = (path / "shards" / f"000001-00000{i}" for i in range(2))
    one.rename(path / "x")
    other.rename(one)
    (path / "x").rename(other)
    assert len(check(path)) >= 2
    assert any(f"{one / 'shard.json'}: is damaged" in line for line in check(path))


def test_deleted_rows(tmp_path):
    path = make_toy(tmp_path / "s").path
    delete(path, ["d2"])
    file = path / "deleted-000002.npy"
    data = file.read_bytes()
    np.save(file, np.array([3]))
    assert check(path) == [f"{file}: is damaged (its checksum is wrong)"]
    file.unlink()
    assert "deleted-000002.npy: cannot be read" in check(path)[0]
    file.write_bytes(data)
    assert check(path) == []


def test_what_does_not_belong(tmp_path):
    path = make_toy(tmp_path / "s").path
    for name in ("deleted-000009.npy", ".store.json.1a.tmp", "shards/000001-000099"):
        (path / name).write_text("x")
    (path / "shards" / ".000002-000000.0-1").mkdir()
    (path / "index").mkdir()
    found = check(path)
    assert len(found) == 4
    assert all("does not belong to the store; a command that was" in f for f in found)
    # As the lines say.
    delete(path, ["d0"])
    assert check(path) == []


def test_while_documents_are_added(tmp_path):
    path = make_toy(tmp_path / "s").path
    busy = start("write_added", path, hold_at=20)
    try:
        assert [p.name for p in path.glob("shards/000002-*")] == ["000002-000000"]
        assert check(path) == []
        norms = path / "shards" / "000002-000000" / "norms.npy"
        data = norms.read_bytes()
        norms.write_bytes(data[:-1] + b"x")
        assert check(path) == [f"{norms}: is damaged (its checksum is wrong)"]
        norms.write_bytes(data)
    finally:
        busy.kill()
        busy.wait()
    assert check(path) == []
    write_added(path)
    assert check(path) == []


def test_no_store(tmp_path):
    with pytest.raises(ClaraError, match="holds no store.json"):
        check(tmp_path)
    with Job.begin(tmp_path / "s", toy_settings(), 2, {}) as job:
        job.write(0, toy_vectors(1), toy_pieces(1))
    with pytest.raises(ClaraError, match="s: is not finished"):
        check(tmp_path / "s")


def test_copies_are_whole(tmp_path):
    path = make_toy(tmp_path / "s").path
    assert check(copy_tree(path, tmp_path / "elsewhere")) == []
