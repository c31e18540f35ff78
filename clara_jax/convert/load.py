"""One entry for every form a model comes in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clara_jax.config import ModelConfig
from clara_jax.convert.apple import (
    find_base,
    is_apple_checkpoint,
    read_apple_checkpoint,
)
from clara_jax.convert.folder import (
    is_model_folder,
    read_clara_settings,
    read_model_config,
    read_model_folder,
)
from clara_jax.convert.gguf import GgufFile
from clara_jax.convert.hf import (
    Progress,
    quiet,
    read_eos_ids,
    read_hf_config,
    read_hf_params,
)
from clara_jax.convert.loaded import ModelFolder, find_named
from clara_jax.convert.named import named_folder, names_remark
from clara_jax.convert.packaged import locate
from clara_jax.convert.peft import is_peft_folder, peft_base, read_peft_folder
from clara_jax.convert.stored import Placement
from clara_jax.errors import ClaraError
from clara_jax.text import NAME_KEY, load_tokenizer


def load_hf(
    source: str | os.PathLike,
    param_dtype: str = "",
    progress: Progress = quiet,
    placement: Placement | None = None,
) -> ModelFolder:
    """Load a base model from a Hugging Face folder or hub name.

    A hub name may be served by an installed package; see `clara_jax.convert.packaged`.
    """
    folder = _located(source)
    if folder.suffix == ".gguf":
        return load_gguf(folder, param_dtype, progress, str(source))
    config = read_hf_config(folder, param_dtype)
    tokenizer = load_tokenizer(folder)
    # Some rules of the original go by the name; the files must not lose it.
    tokenizer.init_kwargs.setdefault(NAME_KEY, str(source))
    eos_ids = read_eos_ids(folder, tokenizer)
    params = read_hf_params(folder, config, progress, placement)
    return ModelFolder(config, params, tokenizer, eos_ids=eos_ids)


def load_gguf(
    source: str | os.PathLike,
    param_dtype: str = "",
    progress: Progress = quiet,
    name: str = "",
) -> ModelFolder:
    """Load a base model from a ``.gguf`` file, dequantized.

    Args:
      source: the file.
      param_dtype, progress: see `load_model`.
      name: what to call the model; empty takes what the file says.
    """
    file = GgufFile(Path(source))
    config = file.config(param_dtype)
    tokenizer = file.tokenizer()
    tokenizer.init_kwargs.setdefault(NAME_KEY, name or file.name)
    params = file.params(config, progress)
    return ModelFolder(config, params, tokenizer, eos_ids=file.eos_ids())


def load_apple(
    source: str | os.PathLike,
    base: str = "",
    param_dtype: str = "",
    progress: Progress = quiet,
) -> ModelFolder:
    """Load a checkpoint of the original CLaRa implementation, with its base model.

    Args:
      source: the checkpoint's folder.
      base: the base model, as `load_model` takes it; empty finds the one that the
        checkpoint names.
      param_dtype, progress: see `load_model`.
    """
    folder = Path(source)
    if not is_apple_checkpoint(folder):
        raise ClaraError(
            f"{folder}: has no adapters.pth, so it is no CLaRa checkpoint; give the "
            "folder that holds it"
        )
    found = find_base(folder, base)
    if is_apple_checkpoint(Path(found)):
        raise ClaraError(f"{found}: is a CLaRa checkpoint itself, not a base model")
    return read_apple_checkpoint(folder, load_model(found, param_dtype, progress))


def load_peft(
    source: str | os.PathLike,
    base: str = "",
    param_dtype: str = "",
    progress: Progress = quiet,
) -> ModelFolder:
    """Load PEFT adapters and special rows, as `write_peft_folder` lays them out.

    Args:
      source: the folder that holds one PEFT folder a role, or the name of a model
        that comes with the package.
      base: the base model, as `load_model` takes it; empty finds the one that the
        folder names.
      param_dtype, progress: see `load_model`.
    """
    folder = named_folder(source)
    if not is_peft_folder(folder):
        raise ClaraError(
            f"{folder}: has no clara.json and special_rows.safetensors; give the "
            "folder that holds these and one PEFT folder a role"
        )
    found = base or find_named(folder, peft_base(folder))
    if is_peft_folder(named_folder(found)):
        raise ClaraError(f"{found}: holds adapters itself, not a base model")
    return read_peft_folder(folder, load_model(found, param_dtype, progress))


def load_model(
    path: str | os.PathLike,
    param_dtype: str = "",
    progress: Progress = quiet,
    *,
    base: str = "",
    placement: Placement | None = None,
) -> ModelFolder:
    """Load a model, whatever it is.

    Args:
      path: a model folder, a run folder, a Hugging Face folder or hub name, a
        ``.gguf`` file, a checkpoint folder of the original implementation, a folder of
        PEFT adapters that `write_peft_folder` wrote, or the name of a model that comes
        with the package.
      param_dtype: type to keep the frozen weights in; empty takes the stored one.
      progress: wraps loops over tensors, for a progress bar.
      base: for a CLaRa model, the base to take in place of the one that it names; only
        one of them is read. Base models do not heed it.
      placement: where the arrays of model folders and Hugging Face folders go, without
        ever being whole on one host; other formats are read to host memory.

    Returns:
      The model in host memory, or where `placement` says.

    Raises:
      ClaraError: it is none of these, or damaged.
    """
    if not str(path):
        return load_hf(path)
    folder = named_folder(path)
    if folder.suffix == ".gguf":
        return load_gguf(folder, param_dtype, progress)
    if is_apple_checkpoint(folder):
        return load_apple(folder, base, param_dtype, progress)
    if is_peft_folder(folder):
        return load_peft(folder, base, param_dtype, progress)
    if not is_model_folder(folder):
        if (folder / "checkpoints").is_dir():
            raise ClaraError(
                f"{folder}: is a training run that has not finished; run the same "
                "command again to finish it"
            )
        return load_hf(path, param_dtype, progress, placement)
    clara = read_clara_settings(folder)
    if clara is None or (clara.backbone == "backbone" and not base):
        return read_model_folder(folder, None, param_dtype, placement)
    found = load_model(
        base or _reference(folder, clara.backbone),
        param_dtype,
        progress,
        placement=placement,
    )
    return read_model_folder(folder, found, param_dtype, placement)


def load_base_tokenizer(source: str | os.PathLike) -> Any:
    """Load only the tokenizer of anything that `load_model` takes.

    Args:
      source: as of `load_model`.

    Returns:
      The base tokenizer, before special tokens are added.
    """
    folder = named_folder(source)
    if is_model_folder(folder):
        return load_tokenizer(folder / "tokenizer")
    if is_apple_checkpoint(folder):
        return load_base_tokenizer(find_base(folder))
    if is_peft_folder(folder):
        return load_base_tokenizer(find_named(folder, peft_base(folder)))
    place = folder if folder.suffix == ".gguf" else _located(source)
    if place.suffix == ".gguf":
        return GgufFile(place).tokenizer()
    return load_tokenizer(place)


def load_config(path: str | os.PathLike) -> ModelConfig:
    """Only the backbone's shape, from anything that `load_model` takes."""
    folder = named_folder(path)
    if folder.suffix == ".gguf":
        return GgufFile(folder).config()
    if is_model_folder(folder):
        return read_model_config(folder)[0]
    if is_apple_checkpoint(folder):
        return load_config(find_base(folder))
    if is_peft_folder(folder):
        return load_config(find_named(folder, peft_base(folder)))
    place = _located(path)
    if place.suffix == ".gguf":
        return GgufFile(place).config()
    return read_hf_config(place)


def _located(source: str | os.PathLike) -> Path:
    """Find a base model; an error also tells what comes with the package."""
    try:
        return locate(source)
    except ClaraError as error:
        remark = names_remark(str(source))
        if not remark or Path(source).exists():
            raise
        raise ClaraError(
            f"{source}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error.__cause__).__name__}); {remark}"
        ) from error


def _reference(folder: Path, name: str) -> str:
    """Where a model folder says that its backbone is."""
    beside = folder / name
    place = beside if beside.exists() else Path(name)
    if place.resolve() == folder.resolve():
        raise ClaraError(f"{folder / 'clara.json'}: names itself as its backbone")
    return str(place)
