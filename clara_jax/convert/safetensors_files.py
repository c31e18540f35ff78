"""Safetensors files, read and written tensor by tensor.

The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from clara_jax.convert.tensors import Outgoing, progress_bar
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_json

SHARD_BYTES = 5 * 10**9
"""Size above which a model is cut into several files."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class SafetensorsFile:
    """An open file; of its tensors only what is asked for is read.

    Raises:
      ClaraError: it is missing, damaged, shorter than its header says or not of this
        format, or a tensor is of a type that is not supported.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except OSError as error:
            raise ClaraError(f"{path}: cannot be read ({first_line(error)})") from error
        except SafetensorError as error:
            raise ClaraError(
                f"{path}: is truncated or not a safetensors file "
                f"({first_line(error)}); fetch it again"
            ) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in self._file.keys():  # noqa: SIM118 (it is not a dict)
            tensor = self.tensor(name)
            if tensor.get_dtype() not in _DTYPES:
                raise ClaraError(
                    f"{path}: tensor '{name}' has type {tensor.get_dtype()}; "
                    f"supported are {', '.join(_DTYPES)}"
                )
            self.shapes[name] = tuple(tensor.get_shape())

    def tensor(self, name: str) -> Any:
        """Return one tensor, whose slices are arrays and read when they are taken."""
        return self._file.get_slice(name)


def write_safetensors(
    path: Path, tensors: Mapping[str, Outgoing], progress: bool = False
) -> None:
    """Write one file with the tensors in their order.

    Raises:
      OSError: the file cannot be written.
    """
    # Not by the library: its `serialize_file` wants all tensors in memory at once.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (
        path.open("wb") as file,
        progress_bar("writing", len(tensors), progress) as bar,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for block in tensor.blocks():
                file.write(block)
            bar.update()


def write_shards(
    folder: Path,
    tensors: Mapping[str, Outgoing],
    limit: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Write ``model.safetensors``, or numbered files and their index.

    A file holds at most `limit` bytes of tensors; a larger one has a file of its own.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {n: tensors[n] for n in names}, progress)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
