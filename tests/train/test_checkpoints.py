"""Checkpoints that are damaged, or belong to something else, or lie elsewhere."""

import errno
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import ClaraError
from clara_jax.model import logical_axes
from clara_jax.sharding import make_mesh, tree_shardings
from clara_jax.testing import toy_network
from clara_jax.train.checkpoints import (
    Checkpoints,
    checksums,
    fingerprint,
    refuse_other,
)


def arrays(scale=1.0):
    return {
        "adapter": {"up": {"a": scale * jnp.arange(32.0).reshape(8, 4)}},
        "step": jnp.int32(3),
    }


def saved(folder, steps=(1, 2, 3), **settings):
    checkpoints = Checkpoints(folder, keep=5, **settings)
    for step in steps:
        checkpoints.save(step, arrays(step), {"step": step})
    checkpoints.close()
    return folder


def newest(folder, template=None, **settings):
    said = []
    checkpoints = Checkpoints(folder, keep=5, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clara_jax.train.checkpoints.report", said.append)
        found = checkpoints.restore_newest(template or arrays())
    return found, said, checkpoints


def data_files(folder):
    files = [p for p in (folder / "arrays").rglob("*") if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def test_newest_comes_back_whole(tmp_path):
    found, said, _ = newest(saved(tmp_path))
    assert found is not None and found[0] == 3 and found[2] == {"step": 3}
    assert not said
    np.testing.assert_array_equal(
        found[1]["adapter"]["up"]["a"], arrays(3)["adapter"]["up"]["a"]
    )


def truncate(folder):
    for path in data_files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in data_files(folder):
        path.unlink()


def no_note(folder):
    for path in (folder / "extra").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("harm", [truncate, empty, no_note])
def test_damaged_newest_is_told_and_the_one_before_it_used(tmp_path, harm):
    saved(tmp_path)
    harm(tmp_path / "3")
    found, said, checkpoints = newest(tmp_path)
    assert found is not None and found[0] == 2 and found[2] == {"step": 2}
    assert len(said) == 1 and "set aside" in said[0] and str(tmp_path / "3") in said[0]
    assert "\n" not in said[0]
    # Its step can be saved again, and is then the newest.
    checkpoints.save(3, arrays(30), {"step": 30})
    checkpoints.close()
    found, said, _ = newest(tmp_path)
    assert found is not None and found[0] == 3 and found[2] == {"step": 30}


def test_every_flipped_byte_is_noticed(tmp_path):
    saved(tmp_path)
    noticed = 0
    for path in data_files(tmp_path / "3")[:3]:
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 7)):
            harmed = bytearray(whole)
            harmed[place] ^= 0x10
            path.write_bytes(harmed)
            checkpoints = Checkpoints(tmp_path, keep=5)
            try:
                read, _ = checkpoints.restore(3, arrays())
            except ClaraError:
                noticed += 1
            else:  # a byte that no number depends on
                jax.tree.map(np.testing.assert_array_equal, read, arrays(3))
            path.write_bytes(whole)
    assert noticed


def test_without_a_whole_one_training_begins_anew(tmp_path):
    saved(tmp_path, steps=(1,))
    empty(tmp_path / "1")
    found, said, _ = newest(tmp_path)
    assert found is None and len(said) == 1


def test_a_full_disk_is_told_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(1, arrays(), {})
    checkpoints.wait()
    checkpoints.save(2, arrays(), {})

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
    monkeypatch.setattr(checkpoints._manager, "close", full)
    with pytest.raises(ClaraError, match="2: the disk is full.*earlier checkpoints st"):
        checkpoints.close()
    assert (tmp_path / "1").is_dir()


def test_changed_numbers_are_damage(tmp_path):
    saved(tmp_path)
    note = next(p for p in (tmp_path / "3" / "extra").rglob("metadata") if p.is_file())
    values = json.loads(note.read_text())
    note_ = json.loads(values["note"])
    note_["checksums"]["adapter/up/a"] += 1
    values["note"] = json.dumps(note_)
    values["digest"] = hashlib.blake2b(
        values["note"].encode(), digest_size=16
    ).hexdigest()
    note.write_text(json.dumps(values))
    found, said, _ = newest(tmp_path)
    assert found is not None and found[0] == 2
    assert "adapter/up/a is not what was saved" in said[0]


def test_another_lora_shape_is_refused(tmp_path):
    saved(tmp_path)
    other = arrays()
    other["adapter"]["up"]["a"] = jnp.zeros((8, 2))
    with pytest.raises(ClaraError, match=r"adapter/up/a has shape \[8, 4\].*\[8, 2\]"):
        newest(tmp_path, other)
    assert (tmp_path / "3").is_dir()


def test_another_backbone_is_refused(tmp_path):
    toy = toy_network()
    frozen = {"compressor": toy.adapters["memory"]}
    mine = fingerprint(toy.replace(adapters=frozen))
    saved(tmp_path, fingerprint=mine)
    assert newest(tmp_path, fingerprint=mine)[0] is not None
    changed = jax.tree.map(lambda x: x, toy.backbone)
    scale = changed["params"]["final_norm"]["scale"]
    changed["params"]["final_norm"]["scale"] = scale.at[3].add(1e-7)
    other = fingerprint(toy.replace(backbone=changed, adapters=frozen))
    with pytest.raises(
        ClaraError, match=r"other frozen weights.*final_norm/scale of \d+ arrays"
    ):
        newest(tmp_path, fingerprint=other)
    wider = toy_network(mlp_dim=48)
    other = fingerprint(wider.replace(adapters=frozen))
    with pytest.raises(ClaraError, match=r"whose mlp_dim is \d+, but this one has 48"):
        newest(tmp_path, fingerprint=other)
    assert (tmp_path / "3").is_dir()


def test_fingerprints_survive_json():
    toy = toy_network()
    mine = fingerprint(toy.replace(adapters={}))
    refuse_other("there", json.loads(json.dumps(mine)), mine)


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 1, "fsdp": 4}, {"fsdp": 2, "tensor": 2}]
)
def test_restore_on_another_mesh(tmp_path, sizes):
    toy = toy_network()
    source = {"compressor": toy.adapters["compressor"]}
    first = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    placed = jax.device_put(source, tree_shardings(first, source, logical_axes))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, placed, {})
    checkpoints.close()
    count = int(np.prod([max(n, 1) for n in sizes.values()]))
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    shardings = tree_shardings(mesh, source, logical_axes)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        source,
        shardings,
    )
    read, _ = Checkpoints(tmp_path).restore(1, like)
    jax.tree.map(np.testing.assert_array_equal, read, source)
    assert jax.tree.map(lambda x: x.sharding, read) == shardings


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool"])
def test_checksums_do_not_depend_on_the_mesh(dtype):
    x = jax.random.normal(jax.random.key(0), (8, 6, 4)) * 50
    x = x > 0 if dtype == "bool" else x.astype(dtype)
    tree = {"mlp": {"up": {"kernel": x}}}
    expected = checksums(tree)
    assert list(expected) == ["mlp/up/kernel"]
    for sizes in ({"data": 8}, {"fsdp": 2, "tensor": 4}):
        mesh = make_mesh(**{"data": 1, **sizes})
        placed = jax.device_put(tree, tree_shardings(mesh, tree, logical_axes))
        assert checksums(placed) == expected
    other = x.at[3, 2, 1].set(~x[3, 2, 1] if dtype == "bool" else x[3, 2, 1] + 1)
    assert checksums({"mlp": {"up": {"kernel": other}}}) != expected
    swapped = x.at[0].set(x[1]).at[1].set(x[0])
    assert checksums({"mlp": {"up": {"kernel": swapped}}}) != expected


def test_no_permission_is_one_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", refused)
    with pytest.raises(ClaraError, match="Permission denied") as caught:
        Checkpoints(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_what_is_saved_may_change_at_once(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 512))
    checkpoints = Checkpoints(tmp_path, keep=9)
    for number in range(1, 9):
        x = step(x)
        checkpoints.save(number, {"x": x}, {})
        x = step(step(x))
        x = step(x) - 3
    checkpoints.close()
    for number in range(1, 9):
        read, _ = Checkpoints(tmp_path, keep=9).restore(number, {"x": x})
        np.testing.assert_array_equal(read["x"], number)
