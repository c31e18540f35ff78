"""Hugging Face models: a folder or a hub name, in one or many safetensors files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clara_jax.config import ModelConfig
from clara_jax.convert.hf_config import model_config_from_hf
from clara_jax.convert.names import TreeBuilder, hf_tensors
from clara_jax.convert.shards import SafetensorsFile
from clara_jax.convert.stored import Placement, place_tensors
from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.shapes import Params

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps an iterable of known length, for a progress bar."""

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def quiet(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The progress bar that shows nothing."""
    del total
    return items


def numpy_dtype(name: str) -> np.dtype:
    """The numpy type of one of `config.DTYPES`."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def fetch(source: str | os.PathLike) -> Path:
    """A local folder for a model's name: itself, or its download from the hub.

    Args:
      source: a folder, or a hub name such as ``mistralai/Mistral-7B-Instruct-v0.2``.

    Raises:
      ClaraError: neither; or the hub cannot be reached or does not have it.
    """
    if not str(source):
        raise ClaraError("the model's name is empty; give a folder or a hub name")
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if path.exists() or name.count("/") > 1 or name[:1] in "./~" or name.endswith("/"):
        raise ClaraError(f"{name}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        raise ClaraError(
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); check the name and the network, or download it "
            "elsewhere and give the folder"
        ) from error


def read_hf_config(folder: Path, param_dtype: str = "") -> ModelConfig:
    """The shape of the model in a folder, from its ``config.json``."""
    path = folder / "config.json"
    if not path.is_file():
        runs = sorted(p.parent.name for p in folder.glob("*/model.json"))
        hint = f"; give one of its runs, such as {folder / runs[-1]}" if runs else ""
        raise ClaraError(f"{folder}: holds no model (no config.json){hint}")
    return model_config_from_hf(read_json(path), str(path), param_dtype)


def read_hf_params(
    folder: Path,
    config: ModelConfig,
    progress: Progress = quiet,
    placement: Placement | None = None,
) -> Params:
    """Load the weights of a folder into our tree.

    The tree is allocated once, in ``config.param_dtype``; each tensor is mapped from
    the disk and copied to its place, so the peak is the tree and no second copy.

    Args:
      folder: with ``model.safetensors``, or shards and their index.
      config: from `read_hf_config`.
      progress: wraps the loop over tensors.
      placement: where arrays lie; each process then reads only what its devices hold.

    Returns:
      The parameter tree: numpy arrays, or with `placement` JAX arrays.

    Raises:
      ClaraError: a file is missing or truncated, a tensor is missing, unexpected or of
        a wrong shape. Every shape is checked before the first byte is copied.
    """
    files = [SafetensorsFile(path) for path in _weight_files(folder)]
    dtype = numpy_dtype(config.param_dtype)
    builder = TreeBuilder(hf_tensors(config), dtype, str(folder))
    places: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file:
            if name.endswith(".rotary_emb.inv_freq"):
                continue
            if name == "lm_head.weight" and config.tied:
                continue
            builder.check(name, file.shape(name), str(file.path))
            if name in places:
                raise ClaraError(
                    f"{file.path}: tensor '{name}' is also in {places[name].path.name}"
                )
            places[name] = file
    if len(places) == len(builder.wanted) and placement is not None:
        tensors = builder.wanted.values()
        return place_tensors(
            tensors, lambda t: places[t.name].read(t.name), dtype, placement
        )
    if len(places) == len(builder.wanted):
        for name, file in progress(places.items(), len(places)):
            builder.put(name, file.read(name), str(file.path))
    else:
        for name in places:
            del builder.wanted[name]
    return builder.finish()


def read_eos_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: generation config, else config, else tokenizer."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is None or ids == []:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if any(type(i) is not int or i < 0 for i in ids):
            raise ClaraError(f"{path}: field 'eos_token_id' is no token id: {ids!r}")
        return tuple(ids)
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ClaraError(f"{index}: has no weight_map")
        names = sorted({str(name) for name in places.values()})
        for name in names:
            if Path(name).name != name:
                raise ClaraError(f"{index}: '{name}' is no plain file name")
            if not (folder / name).is_file():
                raise ClaraError(f"{folder / name}: the shard is missing; fetch it")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    others = [p.name for p in folder.glob("*.bin")]
    hint = f" (found {others[0]}; save it as safetensors first)" if others else ""
    raise ClaraError(f"{folder}: has no model.safetensors{hint}")
