"""The model folder: what `convert` and a finished training run write.

model.json   the backbone's shape
clara.json   memory, LoRA and selection settings (CLaRa models only)
tokenizer/   Hugging Face files of the base tokenizer, chat template included
backbone/    parameter tree (absent when clara.json names another folder)
adapters/    adapter trees, memory and mark rows (CLaRa models only)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from clara_jax.checkpoint import (
    WRITE_ERRORS,
    load_tree,
    remove_folder,
    replace_folder,
    write_tree,
)
from clara_jax.config import (
    MemoryConfig,
    ModelConfig,
    parse,
    to_dict,
)
from clara_jax.convert.hf import numpy_dtype
from clara_jax.convert.loaded import ClaraSettings, ModelFolder
from clara_jax.convert.stored import Placement
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, read_json, write_error, write_json
from clara_jax.model import Transformer, abstract_variables
from clara_jax.shapes import Params
from clara_jax.text import load_tokenizer

FORMAT = "clara_jax model 1"
_SHAPE = (
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "tied",
    "fused_qkv",
    "fused_gate_up",
)
"""Fields in which a base must agree with the adapters put on it."""


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder of the form above."""
    return (path / "model.json").is_file()


def check_destination(path: Path) -> None:
    """Refuse a destination that already holds something.

    Raises:
      ClaraError: `path` is a file or a folder that is not empty.
    """
    if path.is_dir() and any(path.iterdir()):
        raise ClaraError(f"{path}: is not empty; give a new folder or remove it first")
    if path.exists() and not path.is_dir():
        raise ClaraError(f"{path}: is a file; give a new folder")


def write_model_folder(
    path: str | os.PathLike, model: ModelFolder, update: bool = False
) -> None:
    """Write a model folder, whole or not at all.

    Args:
      path: a new or empty folder.
      model: what to write. The backbone's weights are left out when
        ``model.clara.backbone`` names another place.
      update: put the parts into an existing folder (a run's), each replaced by rename.

    Raises:
      ClaraError: the destination is not empty, or cannot be written.
    """
    path = Path(path).absolute()
    if not update:
        check_destination(path)
    with _staged(path, WRITE_ERRORS) as whole:
        _write_parts(whole, model)
        if not update or not path.exists():
            _move(whole, path)
            return
        # model.json last: a folder without it is no model folder yet.
        for part in sorted(whole.iterdir(), key=lambda p: p.name == "model.json"):
            if part.is_dir():
                replace_folder(part, path / part.name)
            else:
                os.replace(part, path / part.name)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write to; it becomes `path` when all has gone well.

    Args:
      path: a new or empty folder.

    Yields:
      An empty folder beside it, which a failure removes.

    Raises:
      ClaraError: the destination is not empty, or cannot be written.
    """
    path = Path(path).absolute()
    check_destination(path)
    with _staged(path, (OSError,)) as whole:
        yield whole
        _move(whole, path)


@contextlib.contextmanager
def _staged(path: Path, failures: tuple[type[Exception], ...]) -> Iterator[Path]:
    """A folder beside `path`, gone afterwards; users are told of `path` alone."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        whole = temporary / "model"
        whole.mkdir()
        yield whole
    except (*failures, ClaraError) as error:
        if temporary is not None and len(failures) > 1:
            remove_folder(temporary)
        # `write_json` has named the temporary folder; users know the destination.
        cause = error.__cause__ if isinstance(error, ClaraError) else error
        if isinstance(cause, failures):
            raise write_error(path, cause) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(whole: Path, path: Path) -> None:
    if path.exists():
        path.rmdir()
    os.rename(whole, path)


def read_model_config(folder: Path) -> tuple[ModelConfig, tuple[int, ...]]:
    """Shape and end-of-answer ids from ``model.json``."""
    path = folder / "model.json"
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise ClaraError(f"{path}: is not of the form '{FORMAT}'")
    eos_ids = values.pop("eos_ids", [])
    if not isinstance(eos_ids, list) or any(type(i) is not int for i in eos_ids):
        raise ClaraError(f"{path}: field 'eos_ids' must be a list of token ids")
    return parse(ModelConfig, values, str(path)), tuple(eos_ids)


def read_clara_settings(folder: Path) -> ClaraSettings | None:
    """Settings from ``clara.json``; None when the folder is a plain base model."""
    path = folder / "clara.json"
    if not path.exists():
        return None
    return parse(ClaraSettings, read_json(path), str(path))


def read_model_folder(
    folder: Path,
    base: ModelFolder | None = None,
    param_dtype: str = "",
    placement: Placement | None = None,
) -> ModelFolder:
    """Read a model folder.

    Args:
      folder: the folder.
      base: the backbone, when it is kept elsewhere.
      param_dtype: type to keep weights in; empty takes the stored one.
      placement: where arrays go, each process reading only what its devices hold; None
        reads all to host memory.

    Returns:
      The model.

    Raises:
      ClaraError: a part is missing or damaged.
    """
    config, eos_ids = read_model_config(folder)
    clara = read_clara_settings(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if clara is not None and clara.text_vocab != len(tokenizer):
        raise ClaraError(
            f"{folder / 'clara.json'}: field 'text_vocab' is {clara.text_vocab}, but "
            f"the tokenizer has {len(tokenizer)} tokens"
        )
    lora = None if clara is None else clara.lora
    shapes = abstract_variables(Transformer(config, len(tokenizer), lora=lora))
    if base is None:
        if param_dtype:
            config = dataclasses.replace(config, param_dtype=param_dtype)
        dtype = numpy_dtype(config.param_dtype)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes["params"]
        )
        params = load_tree(folder / "backbone", like, placement)
    else:
        _same_shape(folder, config, base.config)
        config, params = base.config, base.params
    adapters = rows = None
    if clara is not None:
        adapters = load_tree(folder / "adapters", None, placement)
        _check_adapters(folder, adapters, shapes.get("lora"), clara.memory, config)
        rows = adapters.pop("rows", None)
    return ModelFolder(
        config=config,
        params=params,
        tokenizer=tokenizer,
        clara=clara,
        adapters=adapters,
        rows=rows,
        eos_ids=eos_ids,
    )


def _same_shape(folder: Path, mine: ModelConfig, base: ModelConfig) -> None:
    """Refuse a base of another shape than a folder's adapters were trained on."""
    for name in _SHAPE:
        here, there = getattr(mine, name), getattr(base, name)
        if here != there:
            raise ClaraError(
                f"{folder}: was trained on a base whose {name} is {here}, but the base "
                f"found has {there}; give the right base"
            )


def _check_adapters(
    folder: Path,
    adapters: Params,
    lora: Params,
    memory: MemoryConfig,
    config: ModelConfig,
) -> None:
    """Refuse adapters and rows that are not of the shapes that the settings say."""
    count, width = memory.num_memory, config.width
    want = {"memory": (count, width), "rows": {"marks": (3, width)}}
    if not config.tied:
        want["rows"]["head"] = (count + 3, width)
    for name, tree in adapters.items():
        expected = want.get(name) or jax.tree.map(lambda leaf: tuple(leaf.shape), lora)
        if jax.tree.map(lambda leaf: tuple(leaf.shape), tree) != expected:
            raise ClaraError(
                f"{folder / 'adapters'}: {name} is not of the shape that model.json "
                "and clara.json describe; they belong to different models"
            )


def _write_parts(folder: Path, model: ModelFolder) -> None:
    values = {"format": FORMAT, **to_dict(model.config), "eos_ids": model.eos_ids}
    write_json(folder / "model.json", values)
    write_tokenizer(folder / "tokenizer", model.tokenizer)
    if model.clara is None or model.clara.backbone == "backbone":
        write_tree(folder / "backbone", model.params)
    if model.clara is not None:
        write_json(folder / "clara.json", to_dict(model.clara))
        adapters = dict(model.adapters or {})
        if model.rows:
            adapters["rows"] = model.rows
        write_tree(folder / "adapters", adapters)


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files so that transformers 4 and 5 read them."""
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:  # what tokenizers raises when the disk is full
        raise OSError(first_line(error)) from error
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    for key in ("backend", "is_local", "local_files_only"):
        values.pop(key, None)
    write_json(path, values)
