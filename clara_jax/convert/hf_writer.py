"""One role of a CLaRa model as an ordinary Hugging Face model, its LoRA merged in.

The tables end with the rows of the special tokens, and the tokenizer knows these, so
that whatever reads Hugging Face folders computes what the role computes.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from typing import Any

import numpy as np
import tokenizers

from clara_jax.config import LoraConfig
from clara_jax.convert.folder import new_folder, write_tokenizer
from clara_jax.convert.hf import Progress, numpy_dtype, quiet
from clara_jax.convert.hf_config_writer import hf_from_model_config
from clara_jax.convert.loaded import ModelFolder, base_name, clara_parts, role_adapter
from clara_jax.convert.names import TensorName, extract, hf_tensors
from clara_jax.convert.outgoing import Outgoing, outgoing, stacked
from clara_jax.convert.shards_writer import SHARD_BYTES, write_shards
from clara_jax.errors import ClaraError
from clara_jax.files import write_json
from clara_jax.shapes import Params
from clara_jax.text.prompts import marker_names


def write_hf_folder(
    path: str | os.PathLike,
    model: ModelFolder,
    role: str = "",
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = quiet,
) -> None:
    """Write a model as a Hugging Face folder.

    A role's LoRA is added to the weights in float32, and the sum cast to the type that
    is written. The text rows of the tables are followed by those of the memory tokens,
    AE, ENC and SEP; rows that a padded vocabulary has beyond its tokenizer are left
    out, as in the original. Special tokens are spelled as there: ``<MEM0>``, ``<AE>``.

    Args:
      path: a new or empty folder.
      model: a CLaRa model, or a base model.
      role: whose LoRA; empty for a base model, which is written as it is.
      dtype: type of the weights; empty takes the base's.
      shard_bytes: size above which the weights are cut into several files.
      progress: wraps the loop over tensors.

    Raises:
      ClaraError: a CLaRa model without `role`, a role that it does not have, a shape
        that no architecture of transformers has, or a folder that is not empty or
        cannot be written.
    """
    dtype = dtype or model.config.param_dtype
    config = dataclasses.replace(model.config, param_dtype=dtype)
    tokenizer = copy.deepcopy(model.tokenizer)
    if role:
        clara, _, _ = clara_parts(model)
        names = marker_names(clara.memory.num_memory)
        config = dataclasses.replace(config, vocab_size=clara.text_vocab + len(names))
        add_special_tokens(tokenizer, names, clara.text_vocab)
        tensors = _merged(model, role, dtype)
    elif model.clara is not None:
        roles = ", ".join(sorted(set(model.adapters or ()) - {"memory"}))
        raise ClaraError(f"the source is a CLaRa model; choose --role out of {roles}")
    else:
        tensors = {
            tensor.name: outgoing(model.params, tensor, dtype)
            for tensor in hf_tensors(config)
        }
    values = hf_from_model_config(config, base_name(model))
    ends = _ends(model, tokenizer)
    with new_folder(path) as folder:
        write_json(folder / "config.json", {**values, **ends})
        write_json(folder / "generation_config.json", ends)
        write_tokenizer(folder, tokenizer)
        write_shards(folder, tensors, shard_bytes, progress)


def add_special_tokens(tokenizer: Any, names: tuple[str, ...], first: int) -> None:
    """Give a tokenizer CLaRa's special tokens, in the spelling of the original.

    Raises:
      ClaraError: they do not get the ids from `first` on.
    """
    spelled = [f"<{name}>" for name in names]
    added = [tokenizers.AddedToken(s, special=True, normalized=False) for s in spelled]
    tokenizer.add_tokens(added, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(spelled)
    if ids != list(range(first, first + len(names))):
        raise ClaraError(
            f"the tokenizer gives {spelled[0]} the id {ids[0]} instead of {first}; its "
            "ids must be without gaps and free of CLaRa's special tokens"
        )


def _merged(model: ModelFolder, role: str, dtype: str) -> dict[str, Outgoing]:
    clara, adapters, rows = clara_parts(model)
    tree, count = role_adapter(model, role), clara.text_vocab
    table = model.params["embed"]["embedding"][:count]
    tables = {"embed": stacked(dtype, table, adapters["memory"], rows["marks"])}
    if not model.config.tied:
        kernel = model.params["head"]["kernel"].T[:count]
        tables["head"] = stacked(dtype, kernel, rows["head"])
    found = {}
    for tensor in hf_tensors(model.config):
        if tensor.path[0] in tables:
            found[tensor.name] = tables[tensor.path[0]]
        elif tensor.path[-1] == "kernel" and clara.lora.covers(tensor.path[-2]):
            make = functools.partial(_sum, model.params, tree, tensor, clara.lora)
            found[tensor.name] = Outgoing(tensor.shape, numpy_dtype(dtype), make)
        else:
            found[tensor.name] = outgoing(model.params, tensor, dtype)
    return found


def _sum(
    params: Params, lora: Params, tensor: TensorName, settings: LoraConfig
) -> list[np.ndarray]:
    """A layer's kernel with its adapter added, ``[out, in]`` float32."""
    for key in tensor.path[:-1]:
        lora = lora[key]
    a, b = (np.asarray(lora[key][tensor.layer], np.float32) for key in "ab")
    scale = np.float32(settings.alpha / settings.rank)
    kernel = np.asarray(extract(params, tensor), np.float32)
    return [kernel + scale * (b.T @ a.T)]


def _ends(model: ModelFolder, tokenizer: Any) -> dict[str, Any]:
    """Ids of bos, eos and pad, as configs name them."""
    eos = list(model.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
