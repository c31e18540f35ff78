"""Files that torch writes are read; programs in the place of tensors never run."""

import collections
import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clara_jax.convert.pth import read_pth
from clara_jax.errors import ClaraError

FLOATS = np.arange(6, dtype=np.float32)


class Storage:
    """Pickles as torch's reference to a storage."""

    def __init__(self, key="0", length=6, kind="FloatStorage"):
        self.pid = ("storage", Global("torch", kind), key, "cpu", length)


class Global:
    """Pickles as a name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a name."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Global(module, name), arguments


class Writer(pickle._Pickler):
    """Writes the three classes above; Python's own pickler, so that it can be bent."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(value, save_persistent_id)


def tensor(shape=(2, 3), strides=(3, 1), offset=0, hooks=None, storage=None, **more):
    empty = Call("collections", "OrderedDict")
    arguments = (storage or Storage(**more), offset, shape, strides, False)
    return Call(
        "torch._utils",
        "_rebuild_tensor_v2",
        *arguments,
        empty if hooks is None else hooks,
    )


def program(value, protocol=2):
    buffer = io.BytesIO()
    Writer(buffer, protocol).dump(value)
    return buffer.getvalue()


def write(path, data, entries=None, prefix="archive", method=zipfile.ZIP_STORED):
    """A file as torch lays it out, around any pickle."""
    data = data if isinstance(data, bytes) else program(data)
    entries = {"0": FLOATS.tobytes()} if entries is None else entries
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{prefix}/data.pkl", data)
        archive.writestr(f"{prefix}/byteorder", "little")
        for key, content in entries.items():
            archive.writestr(f"{prefix}/data/{key}", content)
        archive.writestr(f"{prefix}/version", "3\n")
    return path


ACTIONS = {"pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "open"}
_heard: list[str] = []
_listening = [False]


def _listen(event, arguments):
    if _listening[0] and event in ACTIONS and not str(arguments[0]).endswith(".pth"):
        _heard.append(event)


sys.addaudithook(_listen)


@pytest.fixture
def canary():
    """Fails the test when anything is looked up, run or opened while it lasts."""
    _heard.clear()
    yield _listening
    _listening[0] = False
    assert not _heard


def refused(path, pattern="."):
    with pytest.raises(ClaraError, match=pattern) as caught:
        read_pth(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


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


def test_only_what_is_wanted_is_read(tmp_path):
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
    assert list(read_pth(path, keep=lambda key: key == "a")) == ["a"]
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
    refused(tmp_path / "old.pth", "no zip file.*before torch 1.6")
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


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


ATTACKS = {
    "global": b"\x80\x02" + _global("os", "system") + _text("id") + b"\x85R.",
    "eval": b"\x80\x02" + _global("builtins", "eval") + _text("1") + b"\x85R.",
    "python2": b"\x80\x02" + _global("__builtin__", "eval") + _text("1") + b"\x85R.",
    "stack_global": b"\x80\x04"
    + _text("os")
    + _text("system")
    + b"\x93"
    + _text("id")
    + b"\x85R.",
    "stack_global_of_tuples": b"\x80\x04))\x93.",
    "inst": b"(" + _text("id") + b"ios\nsystem\n.",
    "obj": b"(" + _global("os", "system") + _text("id") + b"o.",
    "newobj": b"\x80\x02" + _global("subprocess", "Popen") + _text("id") + b"\x85\x81.",
    "newobj_allowed": b"\x80\x02" + _global("collections", "OrderedDict") + b")\x81.",
    "build": b"\x80\x02" + _global("collections", "OrderedDict") + b")R}b.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent_text": b"\x80\x02Pstorage\n.",
    "persistent_other": b"\x80\x02" + _text("x") + b"Q.",
    "getattr": b"\x80\x02"
    + _global("builtins", "getattr")
    + _global("torch._utils", "_rebuild_tensor_v2")
    + _text("__globals__")
    + b"\x86R.",
    "dotted": b"\x80\x02"
    + _global("torch._utils", "_rebuild_tensor_v2.__globals__")
    + b".",
    "dotted_stack": b"\x80\x04"
    + _text("torch")
    + _text("_utils.sys.modules")
    + b"\x93.",
    "other_torch": b"\x80\x02"
    + _global("torch._utils", "_rebuild_wrapper_subclass")
    + b")R.",
    "load": b"\x80\x02" + _global("torch", "load") + _text("x") + b"\x85R.",
    "call_storage": b"\x80\x02" + _global("torch", "FloatStorage") + b")R.",
    "call_text": b"\x80\x02" + _text("os.system") + _text("id") + b"\x85R.",
    "call_result": b"\x80\x02" + _global("collections", "OrderedDict") + b")R)R.",
    "dict_with_items": b"\x80\x02"
    + _global("collections", "OrderedDict")
    + b"](]K\x01aea\x85R.",
    "subclass": b"\x80\x02" + _global("collections", "Counter") + b")R.",
    "default_factory": b"\x80\x02"
    + _global("collections", "defaultdict")
    + _global("os", "getcwd")
    + b"\x85R.",
    "no_end": b"\x80\x02}",
    "empty_stack": b"\x80\x020.",
    "mark_as_value": b"\x80\x02(\x85.",
    "unknown_memo": b"\x80\x02h\x07.",
    "unknown_instruction": b"\x80\x02\xff.",
    "long_text": b"\x80\x02X\xff\xff\xff\x7fab.",
    "huge_text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fab.",
    "tuple_as_key": b"\x80\x02})K\x01s.",
    "set_on_tuple": b"\x80\x02)K\x01K\x01s.",
    "odd_items": b"\x80\x02}(K\x01u.",
    "list_at_top": b"\x80\x02].",
    "two_results": b"\x80\x02}}.",
    "bytes": b"\x80\x03}" + _text("a") + b"C\x01xs.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(tmp_path, canary, name):
    path = write(tmp_path / "x.pth", ATTACKS[name])
    canary[0] = True
    refused(path)


class Attack:
    def __reduce__(self):
        return os.system, ("id",)


def test_attack_by_reduce(tmp_path, canary):
    canary[0] = True
    for protocol in (2, 4):
        data = pickle.dumps({"a": Attack()}, protocol)
        refused(write(tmp_path / "x.pth", data), "names '(posix|os).system'")


@pytest.mark.parametrize(
    "value",
    [
        tensor(hooks={"a": 1}),
        tensor(hooks=[Global("os", "system")]),
        tensor(shape=(3, 3), strides=(3, 1)),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(shape=(-2, 3)),
        tensor(shape=(2, 3), strides=(-3, 1)),
        tensor(shape=(1 << 40,), strides=(0,)),
        tensor(shape=(1 << 62, 1 << 62), strides=(1, 1)),
        tensor(shape=(6,), strides=(1 << 60,)),
        tensor(shape=(1,) * 9, strides=(1,) * 9),
        tensor(shape=[2, 3]),
        tensor(shape=(2.0, 3)),
        tensor(shape=(True, 3)),
        tensor(strides=(1,)),
        tensor(length=7),
        tensor(length=-6),
        tensor(length=6.0),
        tensor(kind="DoubleStorage"),
        tensor(kind="UntypedStorage"),
        tensor(key="1"),
        tensor(key="../../secret"),
        tensor(key=7),
        tensor(storage=FLOATS.tolist()),
        Call("torch._utils", "_rebuild_tensor_v2", Storage(), 0),
        Call("torch._utils", "_rebuild_parameter", {}, True, {}),
        Call("collections", "OrderedDict", [["a", 1]]),
        Global("torch", "FloatStorage"),
        Storage(),
        [tensor()],
        {"deep": {"a": {"b": {"c": {"d": 1}}}}},
    ],
    ids=range(31),
)
def test_bent_tensors(tmp_path, canary, value):
    canary[0] = True
    refused(write(tmp_path / "x.pth", {"w": value}))


def test_recursion_and_repetition(tmp_path):
    itself = b"\x80\x02}q\x00" + _text("a") + b"h\x00s."
    refused(write(tmp_path / "x.pth", itself))
    depth = 20_000
    for opening in (b"]", b"}"):
        closing = b"a" if opening == b"]" else b""
        deep = b"\x80\x02}" + _text("a") + opening * depth + closing * (depth - 1)
        refused(write(tmp_path / "x.pth", deep + b"s."))
    refused(write(tmp_path / "x.pth", b"\x80\x02)" + b"\x85" * depth + b")R."))
    refused(write(tmp_path / "x.pth", b"\x80\x04)" + b"\x85" * depth + b")\x93."))
    refused(write(tmp_path / "x.pth", b"\x80\x02)" + b"\x85" * depth + b"Q."))
    key = b"\x80\x02})" + b"\x85" * depth + b"K\x01s."
    refused(write(tmp_path / "x.pth", key))
    # A dict of 300 references to a dict of 300 references to ...
    inner = b"}q\x00"
    for level in range(3):
        pairs = b"".join(_text(str(i)) + b"h" + bytes([level]) for i in range(300))
        inner += b"0}(" + pairs + b"uq" + bytes([level + 1])
    refused(write(tmp_path / "x.pth", b"\x80\x02" + inner + b"."))


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
    refused(path, "no zip file")
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
