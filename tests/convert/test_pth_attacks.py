"""Programs in the place of tensors: refused, and nothing of them ever runs."""

import encodings.cp437  # zipfile takes it for file names, and would open it later
import os
import pickle
import struct
import sys

import pytest

from tests.convert.pickles import (
    FLOATS,
    Call,
    Global,
    Storage,
    program,
    refused,
    tensor,
    write,
)

assert encodings.cp437
ACTIONS = {"pickle.find_class", "os.system", "os.exec", "subprocess.Popen", "open"}
_heard: list[str] = []
_listening = [False]


def _listen(event, arguments):
    if _listening[0] and event in ACTIONS and not str(arguments[0]).endswith(".pth"):
        _heard.append(f"{event} {arguments[0]}")


sys.addaudithook(_listen)


@pytest.fixture
def canary():
    """Fails the test when anything is looked up, run or opened while it lasts."""
    _heard.clear()
    yield _listening
    _listening[0] = False
    assert not _heard


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
    "memo_bomb": b"\x80\x02}r\xff\xff\xff\xff.",
    "bytes_bomb": b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00.",
    "frame_bomb": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
    "number_bomb": b"\x80\x02\x8b\xff\xff\xff\x7fab.",
    "build_name": b"\x80\x02" + _global("torch", "FloatStorage") + b"}b.",
    "append_to_name": b"\x80\x02" + _global("torch", "FloatStorage") + b"K\x01a.",
    "set_on_name": b"\x80\x02" + _global("torch", "FloatStorage") + b"K\x01K\x02s.",
    "tensor_as_key": b"\x80\x02}" + program(tensor())[2:-1] + b"K\x01s.",
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


def test_keys_whose_hash_would_overflow_the_stack(tmp_path):
    """Tuples in tuples, one more for each few bytes of a pickle of 8 MiB."""
    empty = _global("collections", "OrderedDict") + b"q\x00)R"
    levels = 1 << 20
    for level in (b"\x85", b"h\x00)R\x86", b"(h\x00)Rt", b"q\x010h\x01\x85"):
        deep = b"\x80\x02}" + empty + b"0)" + level * levels + b"K\x01s."
        refused(write(tmp_path / "x.pth", deep))


def test_names_with_line_breaks_are_told_in_one_line(tmp_path):
    named = b"\x80\x04" + _text("a\nb") + _text("c\nd") + b"\x93."
    refused(write(tmp_path / "x.pth", named), "names")
