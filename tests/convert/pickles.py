"""Files as torch writes them, made without torch, around any pickle."""

import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from clara_jax.convert.pth import read_pth
from clara_jax.errors import ClaraError

FLOATS = np.arange(6, dtype=np.float32)


_Pickler: Any = pickle._Pickler  # type: ignore[attr-defined]


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


class Writer(_Pickler):
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


def refused(path, pattern="."):
    with pytest.raises(ClaraError, match=pattern) as caught:
        read_pth(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
