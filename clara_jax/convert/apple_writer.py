"""Checkpoint folders as the original CLaRa implementation writes them.

See `clara_jax.convert.apple` for the files. Which adapter carries a copy of the tables,
in which order things stand and which fields ``config.json`` has are those of files
that the original wrote at each stage.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from clara_jax.config import LoraConfig
from clara_jax.convert.apple import (
    ADAPTERS,
    EMBEDDING,
    HEAD,
    LAYERS,
    ROLES,
    SETTINGS,
)
from clara_jax.convert.folder import new_folder
from clara_jax.convert.hf import numpy_dtype
from clara_jax.convert.loaded import ClaraSettings, ModelFolder, base_name, clara_parts
from clara_jax.convert.names import TensorName, extract, lora_tensors
from clara_jax.convert.outgoing import Outgoing, stacked, zeros
from clara_jax.convert.pth_writer import Parameter, write_pth
from clara_jax.errors import ClaraError
from clara_jax.files import write_json
from clara_jax.shapes import Params

STAGES = {
    "scp": "stage1",
    "instruct": "stage1_2",
    "end_to_end": "stage2",
    "rerank": "stage2_pretrain_retrieval",
}
"""Our stages, and the original's names of them."""

_ORDER = ("decoder_adapter", "encoder_adapter", "query_reasoner_adapter")
_WITH_TABLES = {
    "stage1": ("decoder_adapter", "encoder_adapter"),
    "stage1_2": ("decoder_adapter",),
}
"""Adapters that PEFT stores with the resized tables: those new in their stage."""

_FIELDS: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "ae_mode": "token",
    "attn_implementation": None,
    "auto_map": {
        "AutoConfig": "modeling_clara.CLaRaConfig",
        "AutoModel": "modeling_clara.CLaRa",
    },
    "compr_base_model_name": "mistralai/Mistral-7B-Instruct-v0.2",
    "compr_every_n_layer": None,
    "compr_linear_type": "concat",
    "compr_mlp_hidden_dim": 8096,
    "compr_model_name": None,
    "compr_n_layers": 5,
    "compr_rms_norm": False,
    "compr_use_mlp": False,
    "device_map": None,
    "different_mem_tokens": True,
    "kbtc_training": False,
    "load_adapters": True,
    "load_pretrained_checkpoint": False,
    "lora": True,
    "lora_compressor": False,
    "max_new_tokens": 128,
    "model_type": "CLaRa",
    "optimize_mem_tokens": True,
    "pure_inference": False,
    "quantization": "no",
    "stage2_retrieval_top_n": 1,
    "training_form": "both_separately",
    "transformers_version": "4.56.2",
}
"""``config.json`` but for what our settings say."""


def write_apple_checkpoint(
    path: str | os.PathLike, model: ModelFolder, dtype: str = "", name: str = ""
) -> None:
    """Write a checkpoint that the original implementation loads.

    The form has no place for some of our settings: it always scales LoRA by 2 (another
    scale is put into the B matrices), adapts all linear layers (others get zeros),
    selects at temperature 0.02 and drops out 0.1 in training.

    Args:
      path: a new or empty folder.
      model: a CLaRa model. Of its base only the text rows are written; the original
        takes everything else from the base model that ``config.json`` names.
      dtype: type of all tensors; empty takes that of the checkpoint the model was read
        from, else the base's.
      name: hub name or path of the base model; empty takes the one that it came from.

    Raises:
      ClaraError: a base model, no name for the base, or a folder that is not empty or
        cannot be written.
    """
    clara, adapters, _ = clara_parts(model)
    stage = STAGES.get(clara.stage, clara.stage)
    fields = _config(clara, stage, base_name(model, name))
    stored = model.config.param_dtype
    kind = dtype or clara.original.adapter_dtype or stored
    tables = _tables(model, kind)
    # With a tied head the embedding stands under both names, in one storage.
    extra = {EMBEDDING: tables[EMBEDDING], HEAD: tables.get(HEAD, tables[EMBEDDING])}
    groups = {}
    for theirs in _ORDER:
        if ROLES[theirs] in adapters:
            groups[theirs] = _adapter(model, clara.lora, adapters[ROLES[theirs]], kind)
            if theirs in _WITH_TABLES.get(stage, ()):
                groups[theirs] |= extra
    tables = _tables(model, dtype or clara.original.table_dtype or stored)
    trained = stage == "stage1"
    with new_folder(path) as folder:
        write_pth(folder / ADAPTERS, groups)
        write_pth(
            folder / LAYERS,
            {
                key: Parameter(tensor, trained and key == EMBEDDING)
                for key, tensor in tables.items()
            },
        )
        write_json(folder / "config.json", fields)


def _config(clara: ClaraSettings, stage: str, name: str) -> dict[str, Any]:
    if not name:
        raise ClaraError(
            "the source does not say what its base model is called; give its hub name "
            "or path with --base-name"
        )
    ours = (
        clara.memory.compression_rate,
        name,
        clara.memory.doc_max_length,
        clara.selection.top_k,
        clara.lora.rank,
        clara.memory.separator,
        stage,
    )
    fields = {**_FIELDS, "lora_r_compressor": clara.lora.rank}
    fields |= clara.original.fields
    fields |= zip(SETTINGS, ours, strict=True)
    return dict(sorted(fields.items()))


def _tables(model: ModelFolder, dtype: str) -> dict[str, Outgoing]:
    """The resized embedding and, untied, the head: text rows, then special ones."""
    clara, adapters, rows = clara_parts(model)
    text = model.params["embed"]["embedding"][: clara.text_vocab]
    tables = {EMBEDDING: stacked(dtype, text, adapters["memory"], rows["marks"])}
    if not model.config.tied:
        kernel = model.params["head"]["kernel"].T
        tables[HEAD] = stacked(dtype, kernel[: clara.text_vocab], rows["head"])
    return tables


def _adapter(
    model: ModelFolder, lora: LoraConfig, tree: Params, dtype: str
) -> dict[str, Outgoing]:
    """LoRA matrices of every linear layer, at the original's fixed scale."""
    factor = lora.alpha / lora.rank / 2

    def scaled(tensor: TensorName) -> list:
        array = extract(tree, tensor)
        return [array * np.float32(factor) if tensor.path[-1] == "b" else array]

    every = dataclasses.replace(lora, layers=("all",))
    return {
        tensor.name: Outgoing(
            tensor.shape, numpy_dtype(dtype), functools.partial(scaled, tensor)
        )
        if lora.covers(tensor.path[-2])
        else zeros(tensor.shape, dtype)
        for tensor in sorted(lora_tensors(model.config, every), key=_layer)
    }


def _layer(tensor: TensorName) -> int:
    return tensor.layer or 0
