"""One entry for every form a model comes in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clara_jax.config import ModelConfig
from clara_jax.convert.apple import apple_base, read_apple_checkpoint
from clara_jax.convert.gguf import GgufFile
from clara_jax.convert.hf import read_eos_ids, read_hf_config, read_hf_params
from clara_jax.convert.model_folder import (
    ModelFolder,
    read_clara_settings,
    read_model_config,
    read_model_folder,
)
from clara_jax.convert.named import (
    Form,
    find_base,
    find_model,
    form_of,
    named_folder,
)
from clara_jax.convert.peft import peft_base, read_peft_folder
from clara_jax.convert.tensors import Placement
from clara_jax.errors import ClaraError
from clara_jax.text import NAME_KEY, load_tokenizer


def load_model(
    path: str | os.PathLike,
    param_dtype: str = "",
    *,
    base: str = "",
    form: Form | None = None,
    placement: Placement | None = None,
    progress: bool = False,
) -> ModelFolder:
    """Load a model, whatever it is.

    Args:
      path: a model or run folder, a Hugging Face folder or hub name, a ``.gguf`` file,
        a checkpoint folder of the original, a folder that `write_peft_folder` wrote, or
        the name of a model that comes with the package.
      param_dtype: type to keep the frozen weights in; empty takes the stored one.
      base: for a CLaRa model, the base to take in place of the one that it names; only
        one of them is read. Base models do not heed it.
      form: refuse all other forms; None finds out which it is.
      placement: where the arrays of model folders and Hugging Face folders go, without
        ever being whole on one host; other formats are read to host memory.
      progress: show a bar over tensors that are read.

    Raises:
      ClaraError: it is none of these, or damaged.
    """
    form, place = find_model(path, form)
    if form in ("hf", "gguf"):
        name = str(path)
        if form == "hf":
            config, tokenizer = (
                read_hf_config(place, param_dtype),
                load_tokenizer(place),
            )
            eos_ids = read_eos_ids(place, tokenizer)
            params = read_hf_params(place, config, placement, progress)
        else:
            file = GgufFile(place)
            config, tokenizer = file.config(param_dtype), file.tokenizer()
            eos_ids, params = file.eos_ids(), file.params(config, progress)
            name = file.name if place == Path(path) else name
        # Some rules of the original go by the name; the files must not lose it.
        tokenizer.init_kwargs.setdefault(NAME_KEY, name)
        return ModelFolder(config, params, tokenizer, eos_ids=eos_ids)
    if form == "model":
        clara = read_clara_settings(place)
        if clara is None or (clara.backbone == "backbone" and not base):
            return read_model_folder(place, None, param_dtype, placement)
    base = base or _base_of(form, place)
    if form != "model" and form_of(named_folder(base)) == form:
        raise ClaraError(f"{base}: holds adapters itself, not a base model")
    where = placement if form == "model" else None
    found = load_model(base, param_dtype, placement=where, progress=progress)
    if form == "apple":
        return read_apple_checkpoint(place, found)
    if form == "peft":
        return read_peft_folder(place, found)
    return read_model_folder(place, found, param_dtype, placement)


def load_base_tokenizer(path: str | os.PathLike) -> Any:
    """Load only the tokenizer, without special tokens, of what `load_model` takes."""
    form, place = find_model(path, None)
    if form == "model":
        return load_tokenizer(place / "tokenizer")
    if form == "gguf":
        return GgufFile(place).tokenizer()
    if form == "hf":
        return load_tokenizer(place)
    return load_base_tokenizer(_base_of(form, place))


def load_config(path: str | os.PathLike) -> ModelConfig:
    """Load only the backbone's shape, from anything that `load_model` takes."""
    form, place = find_model(path, None)
    if form == "model":
        return read_model_config(place)[0]
    if form == "gguf":
        return GgufFile(place).config()
    if form == "hf":
        return read_hf_config(place)
    return load_config(_base_of(form, place))


def _base_of(form: Form, folder: Path) -> str:
    """Return where the base is that a CLaRa model of this form names."""
    if form == "apple":
        return find_base(folder, apple_base(folder))
    if form == "peft":
        return find_base(folder, peft_base(folder))
    clara = read_clara_settings(folder)
    name = "" if clara is None else clara.backbone
    place = folder / name if (folder / name).exists() else Path(name)
    if place.resolve() == folder.resolve():
        raise ClaraError(f"{folder / 'clara.json'}: names itself as its backbone")
    return str(place)
