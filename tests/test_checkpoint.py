import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clara_jax.checkpoint import load_tree, replace_folder, write_tree
from clara_jax.errors import ClaraError


def _tree():
    return {
        "a": {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3)},
        "b": np.arange(5).astype(ml_dtypes.bfloat16),
        "c": jnp.arange(16, dtype=jnp.int32),
    }


def test_round_trip(tmp_path):
    write_tree(tmp_path / "tree", _tree())
    read = load_tree(tmp_path / "tree")
    for got, wanted in zip(
        jax.tree.leaves(read), jax.tree.leaves(_tree()), strict=True
    ):
        assert isinstance(got, np.ndarray) and got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_replaces_an_older_tree(tmp_path):
    write_tree(tmp_path / "tree", _tree())
    write_tree(tmp_path / "new", {"x": np.ones(3)})
    replace_folder(tmp_path / "new", tmp_path / "tree")
    assert list(load_tree(tmp_path / "tree")) == ["x"]
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_like_gives_types_and_shardings(tmp_path):
    write_tree(tmp_path / "tree", _tree())
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
    write_tree(tmp_path / "tree", _tree())

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
    write_tree(tmp_path / "tree", _tree())
    for path in (tmp_path / "tree").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ClaraError, match="damaged or incomplete") as caught:
        load_tree(tmp_path / "tree")
    assert "\n" not in str(caught.value)


PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from clara_jax.checkpoint import WRITE_ERRORS, load_tree, write_tree
from clara_jax.errors import ClaraError
from clara_jax.files import write_error

folder = Path(sys.argv[1])
draw = np.random.default_rng(0)
tree = {str(i): draw.normal(size=20_000) for i in range(60)}
write_tree(folder / "damaged", tree)
max((folder / "damaged").rglob("d/*"), key=lambda p: p.stat().st_size).unlink()
try:
    load_tree(folder / "damaged")
except ClaraError as error:
    print(error, file=sys.stderr)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
try:
    write_tree(folder / "large", tree)
except WRITE_ERRORS as error:
    print(write_error(folder / "large", error), file=sys.stderr)
"""


def test_what_orbax_gives_up_is_one_line_each(tmp_path):
    """Neither its log nor the reads and writes that it leaves behind are printed."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    read, write = done.stderr.splitlines()
    assert read.startswith(f"{tmp_path}/damaged: the saved tree is damaged"), read
    assert write.startswith(f"{tmp_path}/large: cannot be written ("), write


OTHERS = """
import logging
import clara_jax.checkpoint

class Late:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)

logging.getLogger("absl").error("of another library")
logging.getLogger("asyncio").error("of a task")
Late("another error")
Late("Event loop is closed")

async def mine(): pass

class Store:
    async def _get_array_metadatas(self): pass

mine()
Store()._get_array_metadatas()
"""


def test_what_others_log_and_give_up_is_printed(capfd):
    subprocess.run([sys.executable, "-c", OTHERS], check=True)
    said = capfd.readouterr().err
    for text in (
        "of another library",
        "of a task",
        "another error",
        "'mine' was never",
    ):
        assert text in said
    assert "Event loop" not in said and "Store" not in said
