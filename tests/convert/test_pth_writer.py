import zipfile

import ml_dtypes
import numpy as np
import pytest

from clara_jax.convert.outgoing import Outgoing, stacked
from clara_jax.convert.pth import read_pth
from clara_jax.convert.pth_writer import Parameter, write_pth

TORCH = "reads what is written with PyTorch: pip install torch==2.13.0"


def _tensor(array):
    return Outgoing(array.shape, array.dtype, lambda: [array])


def _arrays():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(300, 7))
    return {
        "float32": wide.astype(np.float32),
        "bfloat16": wide.astype(ml_dtypes.bfloat16),
        "float16": wide[:3, 0].astype(np.float16),
        "float64": wide.T,
        "int64": np.arange(24).reshape(2, 3, 4),
        "bool": np.array([[True], [False]]),
    }


def test_read_back_without_torch(tmp_path):
    arrays = _arrays()
    groups = {"a": {k: _tensor(v) for k, v in arrays.items()}, "b": {}}
    write_pth(tmp_path / "x.pth", {**groups, "alone": _tensor(arrays["float32"])})
    read = read_pth(tmp_path / "x.pth")
    assert list(read) == ["a", "b", "alone"] and read["b"] == {}
    assert list(read["a"]) == list(arrays)
    for name, array in arrays.items():
        assert read["a"][name].dtype == array.dtype
        np.testing.assert_array_equal(read["a"][name], array)


def test_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    arrays, path = _arrays(), tmp_path / "x.pth"
    tensors = {name: _tensor(array) for name, array in arrays.items()}
    first = tensors["float32"]
    values = {"group": tensors, "again": first, "learnt": Parameter(first, True)}
    write_pth(path, {**values, "fixed": Parameter(first)})
    for mapped in (False, True):
        read = torch.load(path, weights_only=True, mmap=mapped)
        assert list(read) == ["group", "again", "learnt", "fixed"]
        for name, array in arrays.items():
            tensor = read["group"][name]
            assert str(tensor.dtype) == f"torch.{name}" and tensor.is_contiguous()
            wide = tensor.float() if name == "bfloat16" else tensor
            np.testing.assert_array_equal(wide, array.astype(wide.numpy().dtype))
        storage = read["group"]["float32"].data_ptr()
        assert {read[n].data_ptr() for n in ("again", "learnt", "fixed")} == {storage}
        assert isinstance(read["learnt"], torch.nn.Parameter)
        assert [read[n].requires_grad for n in ("learnt", "fixed")] == [True, False]


def test_the_zip_is_as_torch_writes_it(tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    arrays = {k: _arrays()[k] for k in ("float32", "int64")}
    write_pth(tmp_path / "x.pth", {k: _tensor(v) for k, v in arrays.items()})
    tensors = {k: torch.tensor(v) for k, v in arrays.items()}
    (tmp_path / "torch").mkdir()
    torch.save(tensors, tmp_path / "torch" / "x.pth")

    def entries(path):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            found = {i.filename: archive.read(i) for i in archive.infolist()}
        return {k: v for k, v in found.items() if k.split("/")[1] != ".data"}

    ours, theirs = (entries(f / "x.pth") for f in (tmp_path, tmp_path / "torch"))
    assert list(ours) == list(theirs)
    for name in set(ours) - {"x/data.pkl"}:
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("wide", [False, True])
def test_storages_are_aligned(tmp_path, monkeypatch, wide):
    if wide:  # files above 2 GiB take other headers
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path = tmp_path / "some-name.pth"
    arrays = [np.full(n, n, np.float32) for n in (1, 5, 2000, 3)]
    write_pth(path, {str(i): _tensor(array) for i, array in enumerate(arrays)})
    data = path.read_bytes()
    for array in arrays:
        assert data.index(array.tobytes()) % 64 == 0
    for key, array in read_pth(path).items():
        np.testing.assert_array_equal(array, arrays[int(key)])
    torch = pytest.importorskip("torch", reason=TORCH)
    for key, tensor in torch.load(path, weights_only=True).items():
        np.testing.assert_array_equal(tensor, arrays[int(key)])


def test_parts_of_any_type_and_layout(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(5, 4)).T, rng.normal(size=(2, 5)).astype(np.float32)]
    tensor = stacked("bfloat16", *parts)
    assert tensor.shape == (6, 5) and tensor.nbytes == 60
    write_pth(tmp_path / "x.pth", {"x": tensor})
    expected = np.concatenate(parts).astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(read_pth(tmp_path / "x.pth")["x"], expected)


def test_one_tensor_at_a_time(tmp_path):
    log = []

    def make(name):
        log.append(name)
        yield np.ones((2, 3), np.float32)

    def tensor(name):
        return Outgoing((2, 3), np.dtype(np.float32), lambda: make(name))

    both = {name: tensor(name) for name in "ab"}
    assert log == []
    write_pth(tmp_path / "x.pth", {**both, "a again": both["a"]})
    assert log == ["a", "b"]
