"""Safetensors files written tensor by tensor; see `clara_jax.convert.shards`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from clara_jax.convert.hf import Progress, quiet
from clara_jax.convert.outgoing import Outgoing
from clara_jax.convert.shards import DTYPES
from clara_jax.files import write_json

SHARD_BYTES = 5 * 10**9
"""Size above which a model is cut into several files."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Outgoing],
    metadata: Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> None:
    """Write one file.

    Args:
      path: where.
      tensors: by name, in the order of the file.
      metadata: texts for the header, beside the ``format`` that transformers asks for.
      progress: wraps the loop over tensors.

    Raises:
      OSError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in progress(tensors.values(), len(tensors)):
            for block in tensor.blocks():
                file.write(block)


def write_shards(
    folder: Path,
    tensors: Mapping[str, Outgoing],
    limit: int = SHARD_BYTES,
    progress: Progress = quiet,
) -> None:
    """Write ``model.safetensors``, or numbered files and their index.

    Args:
      folder: where.
      tensors: by name, in the order of the files.
      limit: bytes of tensors in one file; a larger tensor has a file of its own.
      progress: wraps the loop over the tensors of each file.
    """
    shards: list[dict[str, Outgoing]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", tensors, progress=progress)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, progress=progress)
        places.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
