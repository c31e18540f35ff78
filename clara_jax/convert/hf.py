"""Hugging Face folders: a base model read, a model or one role of it written.

A role is written as an ordinary model, its LoRA merged in: the tables end with the rows
of the special tokens, which the tokenizer knows.
"""

import copy
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken

from clara_jax.commands import note
from clara_jax.config import ModelConfig
from clara_jax.convert.forms import is_gguf
from clara_jax.convert.hf_config import hf_from_model_config, model_config_from_hf
from clara_jax.convert.model_folder import ModelFolder, new_folder, write_tokenizer
from clara_jax.convert.names import EMBEDDING, HEAD, TensorName, hf_tensors
from clara_jax.convert.tensors import (
    Outgoing,
    Placement,
    SafetensorsFile,
    alike,
    build_tree,
    check_tensors,
    extract,
    outgoing,
    write_shards,
)
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json
from clara_jax.shapes import Params
from clara_jax.text.prompts import marker_names

_FOR_IMAGES = ("vision_tower.", "multi_modal_projector.")
"""Beginnings of names of tensors that text does not need (Gemma 3)."""


def read_hf_config(folder: Path, param_dtype: str = "") -> ModelConfig:
    """Return the shape of the model in a folder, from its ``config.json``."""
    path = folder / "config.json"
    if not path.is_file():
        runs = sorted(p.parent.name for p in folder.glob("*/model.json"))
        hint = f"; give one of its runs, such as {folder / runs[-1]}" if runs else ""
        gguf = sorted(path.name for path in folder.glob("*") if is_gguf(path))
        if gguf and not runs:
            hint = f"; it has {', '.join(gguf)}: give such a file's path"
        raise ClaraError(f"{folder}: holds no model (no config.json){hint}")
    return model_config_from_hf(read_json(path), str(path), param_dtype)


def read_hf_params(
    folder: Path, config: ModelConfig, placement: Placement | None = None
) -> Params:
    """Load the weights of a folder as `build_tree` does, after checking all shapes.

    Of a model that also reads images, its part for text; what is left out is counted.

    Raises:
      ClaraError: a file is missing or truncated; a tensor is missing, unexpected or of
        a wrong shape.
    """
    files: dict[str, SafetensorsFile] = {}
    stored: dict[str, str] = {}
    heads = []
    for_images = 0
    for path in _weight_files(folder):
        file = SafetensorsFile(path)
        for full_name in file.shapes:
            if full_name.startswith(_FOR_IMAGES):
                for_images += 1
                continue
            name = full_name.removeprefix("language_model.")
            if name.endswith(".rotary_emb.inv_freq"):  # follows from the config
                continue
            if name == HEAD and config.tied:
                heads.append((file, full_name))
                continue
            if name in files:
                raise ClaraError(
                    f"{path}: tensor '{name}' is also in {files[name].path.name}"
                )
            files[name], stored[name] = file, full_name
    if for_images:
        note(f"{folder}: {for_images:,} tensors for images are left out")
    tensors = hf_tensors(config)
    shapes = {name: file.shapes[stored[name]] for name, file in files.items()}
    paths = {name: file.path for name, file in files.items()}
    check_tensors(tensors, shapes, folder, paths)
    for file, head in heads:
        embedding = files[EMBEDDING].tensor(stored[EMBEDDING])
        if not alike(file.tensor(head), embedding):
            raise ClaraError(
                f"{file.path}: tensor '{head}' is not the embedding, though the "
                "config.json ties the two; set its tie_word_embeddings to false"
            )

    def read(tensor: TensorName) -> Any:
        return files[tensor.name].tensor(stored[tensor.name])

    return build_tree(tensors, read, config.param_dtype, placement)


def read_eos_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return ids that end an answer: generation config, else config, else tokenizer."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is None or ids == []:
            continue
        ids = ids if isinstance(ids, list) else [ids]
        if any(type(i) is not int or i < 0 for i in ids):
            raise ClaraError(f"{path}: field 'eos_token_id' is not a token id: {ids!r}")
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
                raise ClaraError(f"{index}: '{name}' is not a plain file name")
            if not (folder / name).is_file():
                raise ClaraError(f"{folder / name}: the shard is missing; fetch it")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    others = [p.name for p in folder.glob("*.bin")]
    hint = f" (found {others[0]}; save it as safetensors first)" if others else ""
    raise ClaraError(f"{folder}: has no model.safetensors{hint}")


def write_hf_folder(
    path: str | os.PathLike, model: ModelFolder, role: str = "", dtype: str = ""
) -> None:
    """Write a base model as a Hugging Face folder, or one role of a CLaRa model.

    A role's LoRA is added to the weights in float32, and the sum cast to the `dtype`
    that is written; empty takes the base's. Special tokens are spelled as in the
    original: ``<MEM0>``, ``<AE>``.

    Raises:
      ClaraError: a CLaRa model without `role`, a role that it does not have, or a shape
        that no architecture of transformers has.
    """
    dtype = dtype or model.config.param_dtype
    config = dataclasses.replace(model.config, param_dtype=dtype)
    tokenizer = copy.deepcopy(model.tokenizer)
    tensors = {t.name: outgoing(model.params, t, dtype) for t in hf_tensors(config)}
    if role:
        clara, _, _ = model.parts()
        size = clara.text_vocab + clara.memory.num_special
        config = dataclasses.replace(config, vocab_size=size)
        names = [f"<{name}>" for name in marker_names(clara.memory.num_memory)]
        added = [AddedToken(name, special=True, normalized=False) for name in names]
        tokenizer.add_tokens(added, special_tokens=True)
        ids = tokenizer.convert_tokens_to_ids(names)
        if ids != list(range(clara.text_vocab, size)):
            raise ClaraError(
                f"the tokenizer gives {names[0]} the id {ids[0]} instead of "
                f"{clara.text_vocab}; its ids must be without gaps and free of CLaRa's "
                "special tokens"
            )
        tensors |= _merged(model, role, dtype)
    elif model.clara is not None:
        roles = ", ".join(model.roles())
        raise ClaraError(f"the source is a CLaRa model; choose --role out of {roles}")
    eos = list(model.eos_ids)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    values = {**hf_from_model_config(config, model.base_name()), **ends}
    with new_folder(path) as folder:
        write_json(folder / "config.json", values)
        write_json(folder / "generation_config.json", ends)
        write_tokenizer(folder, tokenizer)
        write_shards(folder, tensors)


def _merged(model: ModelFolder, role: str, dtype: str) -> dict[str, Outgoing]:
    """Return the tensors in which a role differs from the base."""
    clara, _, _ = model.parts()
    adapter, found, tables = model.adapter(role), {}, model.tables(dtype)
    scale = np.float32(clara.lora.alpha / clara.lora.rank)

    def added(tensor: TensorName) -> list[np.ndarray]:
        names = (tensor._replace(path=(*tensor.path[:-1], key)) for key in "ab")
        a, b = (extract(adapter, name).astype(np.float32) for name in names)
        kernel = extract(model.params, tensor).astype(np.float32)
        return [kernel + scale * (b @ a)]

    for tensor in hf_tensors(model.config):
        if tensor.path[0] in tables:
            found[tensor.name] = tables[tensor.path[0]]
        elif tensor.path[-1] == "kernel" and clara.lora.covers(tensor.path[-2]):
            make = functools.partial(added, tensor)
            found[tensor.name] = Outgoing(tensor.shape, np.dtype(dtype), make)
    return found
