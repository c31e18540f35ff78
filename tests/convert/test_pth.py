"""Files that torch writes are read, and damaged ones refused."""

import collections
import pickletools
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clara_jax.convert.pth import Parameter, read_pth, write_pth
from clara_jax.convert.tensors import Outgoing, stacked
from clara_jax.errors import ClaraError
from tests.convert.pickles import FLOATS, Call, program, refused, tensor, write

TORCH = "reads what is written with PyTorch: pip install torch==2.13.0"


def test_nested_tensors(tmp_path):
    value = {"a": {"w": tensor(), "n": 3}, "t": tensor((3, 2), (1, 3)), "s": "text"}
    read = read_pth(write(tmp_path / "x.pth", value))
    np.testing.assert_array_equal(read["a"]["w"], FLOATS.reshape(2, 3))
    np.testing.assert_array_equal(read["t"], FLOATS.reshape(2, 3).T)
    assert (read["a"]["n"], read["s"]) == (3, "text")
    assert not read["t"].flags.writeable


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_protocols_and_parameters(tmp_path, protocol):
    empty = Call("collections", "OrderedDict")
    parameter = Call("torch._utils", "_rebuild_parameter", tensor(), True, empty)
    data = program({"w": parameter}, protocol)
    read = read_pth(write(tmp_path / "x.pth", data))
    np.testing.assert_array_equal(read["w"], FLOATS.reshape(2, 3))


def test_views_and_scalars(tmp_path):
    value = {
        "tail": tensor((2,), (2,), 3),
        "one": tensor((), (), 5),
        "no": tensor((0,), (1,)),
    }
    read = read_pth(write(tmp_path / "x.pth", value))
    np.testing.assert_array_equal(read["tail"], [3, 5])
    assert read["one"] == 5 and read["no"].shape == (0,)


def test_types(tmp_path):
    bits = np.arange(6).astype(ml_dtypes.bfloat16)
    ids = np.arange(6)
    value = {
        "b": tensor(kind="BFloat16Storage"),
        "i": tensor(key="1", kind="LongStorage"),
    }
    entries = {"0": bits.tobytes(), "1": ids.tobytes()}
    read = read_pth(write(tmp_path / "x.pth", value, entries))
    assert read["b"].dtype == ml_dtypes.bfloat16 and read["i"].dtype == np.int64
    np.testing.assert_array_equal(read["b"].astype(int), ids.reshape(2, 3))


def test_a_changed_byte_is_noticed(tmp_path):
    path = write(
        tmp_path / "x.pth",
        {"a": tensor(), "b": tensor(key="1")},
        {"0": FLOATS.tobytes(), "1": FLOATS.tobytes()},
    )
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("archive/data/1").header_offset
    data[start + 60] ^= 1
    path.write_bytes(bytes(data))
    refused(path, "damaged")


def test_files_of_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="writes files with PyTorch")
    weight = torch.arange(12.0).reshape(3, 4).to(torch.bfloat16)
    value = {
        "p": torch.nn.Parameter(weight.float()),
        "view": weight.t()[1:],
        "group": collections.OrderedDict(x=weight, y=weight),
    }
    torch.save(value, tmp_path / "x.pth")
    read = read_pth(tmp_path / "x.pth")
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read["p"], expected)
    np.testing.assert_array_equal(read["view"].astype(np.float32), expected.T[1:])
    np.testing.assert_array_equal(read["group"]["y"].astype(np.float32), expected)
    torch.save(value, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "not a zip file.*before torch 1.6")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(tmp_path / "module.pth", "names 'torch.nn.modules")


def test_oracle_checkpoints(oracle):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    paths = sorted(oracle.glob("*/stage*/*.pth"))
    assert paths
    for path in paths:
        theirs, ours = torch.load(path), read_pth(path)
        if path.name != "adapters.pth":
            theirs, ours = {"": theirs}, {"": ours}
        assert list(theirs) == list(ours)
        for name, group in theirs.items():
            assert list(group) == list(ours[name])
            for key, value in group.items():
                expected = value.detach().float().numpy()
                got = ours[name][key].astype(np.float32)
                np.testing.assert_array_equal(got, expected)


def test_zip_tricks(tmp_path):
    path = tmp_path / "x.pth"
    good = {"w": tensor()}
    refused(write(path, good, method=zipfile.ZIP_DEFLATED), "compressed")
    refused(write(path, good, {"0": FLOATS.tobytes(), "../../etc": b""}), "refused")
    refused(write(path, good, prefix="/abs"), "refused")
    with zipfile.ZipFile(write(path, good), "a") as archive:
        archive.writestr("elsewhere/data/0", b"")
    refused(path, "outside of 'archive/'")
    with zipfile.ZipFile(write(path, good), "a") as archive:
        archive.writestr("other/data.pkl", b"")
    refused(path, "no data.pkl")
    with zipfile.ZipFile(write(path, good), "a") as archive, pytest.warns(UserWarning):
        archive.writestr("archive/data/0", b"")
    refused(path, "refused")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program(good))
        archive.writestr("a/byteorder", "big")
    refused(path, "big-endian")
    path.write_bytes(b"\x80\x02}.")
    refused(path, "not a zip file")
    whole = write(path, good).read_bytes()
    for length in (0, 10, 100, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        refused(path)
    path.unlink()
    refused(path, "cannot be read")


def test_sizes_that_lie(tmp_path):
    path = write(tmp_path / "x.pth", {"w": tensor()})
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    for field, size in ((20, 4), (24, 4)):
        bent = bytearray(data)
        bent[at + field : at + field + size] = struct.pack("<I", 0x7FFFFFFF)
        path.write_bytes(bytes(bent))
        refused(path)
    bent = bytearray(data)
    bent[at + 20 : at + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    path.write_bytes(bytes(bent))
    refused(path, "overlap")


def test_random_damage_gives_one_line(tmp_path):
    path = write(tmp_path / "x.pth", {"a": {"w": tensor()}, "b": tensor((6,), (1,))})
    with zipfile.ZipFile(path) as archive:
        good = archive.read("archive/data.pkl")
    assert len(list(pickletools.genops(good))) > 30
    rng = np.random.default_rng(0)
    for _ in range(200):
        bent = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            bent[rng.integers(len(bent))] = rng.integers(256)
        try:
            result = read_pth(write(path, bytes(bent)))
        except ClaraError as error:
            assert "\n" not in str(error)
        else:
            assert isinstance(result, dict)


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
    for key, read in torch.load(path, weights_only=True).items():
        np.testing.assert_array_equal(read, arrays[int(key)])


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
