import asyncio
import gc
import sys
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clara_jax.checkpoint import load_tree, quiet_orbax, save_tree
from clara_jax.errors import ClaraError


def _tree():
    return {
        "a": {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3)},
        "b": np.arange(5).astype(ml_dtypes.bfloat16),
        "c": jnp.arange(16, dtype=jnp.int32),
    }


def test_round_trip(tmp_path):
    save_tree(tmp_path / "deep" / "tree", _tree())
    read = load_tree(tmp_path / "deep" / "tree")
    for got, wanted in zip(
        jax.tree.leaves(read), jax.tree.leaves(_tree()), strict=True
    ):
        assert isinstance(got, np.ndarray) and got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["tree"]


def test_replaces_an_older_tree(tmp_path):
    save_tree(tmp_path / "tree", _tree())
    save_tree(tmp_path / "tree", {"x": np.ones(3)})
    assert list(load_tree(tmp_path / "tree")) == ["x"]
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_like_gives_types_and_shardings(tmp_path):
    save_tree(tmp_path / "tree", _tree())
    mesh = jax.make_mesh((8,), ("x",))
    split = NamedSharding(mesh, P("x"))
    like = {
        "a": {"kernel": np.zeros((4, 3), np.float16)},
        "b": jax.ShapeDtypeStruct((5,), jnp.float32),
        "c": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split),
    }
    read = load_tree(tmp_path / "tree", like)
    assert read["a"]["kernel"].dtype == np.float16
    assert isinstance(read["b"], np.ndarray) and read["b"].dtype == np.float32
    assert read["c"].sharding == split
    np.testing.assert_array_equal(read["c"], np.arange(16))


def test_mismatch_names_the_array(tmp_path):
    save_tree(tmp_path / "tree", _tree())

    def fails(pattern, **changes):
        like = {k: v for k, v in (_tree() | changes).items() if v is not None}
        with pytest.raises(ClaraError, match=pattern):
            load_tree(tmp_path / "tree", like)

    fails(r"\['b'\] has shape \(5,\), but \(6,\) is needed", b=np.zeros(6))
    fails(r"\['new'\] is missing", new=np.zeros(1))
    fails(r"\['b'\] is not expected", b=None)


def test_missing_or_damaged(tmp_path):
    with pytest.raises(ClaraError, match="there is no saved tree"):
        load_tree(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClaraError, match="damaged or incomplete"):
        load_tree(tmp_path / "empty")
    save_tree(tmp_path / "tree", _tree())
    for path in (tmp_path / "tree").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ClaraError, match="damaged or incomplete") as caught:
        load_tree(tmp_path / "tree")
    assert "\n" not in str(caught.value)


def test_failed_save_leaves_the_older_tree(tmp_path, monkeypatch):
    save_tree(tmp_path / "tree", _tree())

    def full(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: write: No space left on device [x='y']")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    with pytest.raises(ClaraError, match="tree: the disk is full"):
        save_tree(tmp_path / "tree", {"x": np.ones(3)})
    monkeypatch.undo()
    assert list(load_tree(tmp_path / "tree")) == ["a", "b", "c"]
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="cannot be written"):
        save_tree(tmp_path / "file" / "tree", _tree())


CODE = """
import logging
def log(): logging.getLogger("absl").error("failed")
async def read(): 1 / 0
"""


def test_what_orbax_says_of_its_errors_is_not_reported(monkeypatch, caplog):
    """No log, nothing never begun, nothing that failed unseen; of others, all is."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: unraisable.append(u.exc_value))
    quiet_orbax()

    def abandon(file):
        names: dict = {}
        exec(compile(CODE, file, "exec"), names)
        names["log"]()
        with warnings.catch_warnings(action="error"):
            names["read"]()
            gc.collect()
        with asyncio.Runner() as runner:
            task = runner.get_loop().create_task(names["read"]())
            runner.run(asyncio.wait([task]))
        del task
        gc.collect()

    abandon("/lib/orbax/checkpoint/reader.py")
    assert not unraisable and not caplog.records
    abandon("/lib/another/reader.py")
    assert ["never awaited" in str(error) for error in unraisable] == [True]
    log, unseen = (record.getMessage() for record in caplog.records)
    assert log == "failed" and "never retrieved" in unseen
