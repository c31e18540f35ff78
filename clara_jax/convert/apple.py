"""Checkpoint folders of the original CLaRa implementation, all three stages.

A folder holds ``config.json``, ``adapters.pth`` (LoRA by adapter) and
``decoder_first_last_layers.pth`` (the resized embedding, and the head when untied).
Every other weight is that of the base model that ``config.json`` names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.config import (
    DTYPES,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    SelectionConfig,
)
from clara_jax.convert.loaded import (
    ClaraSettings,
    ModelFolder,
    OriginalFiles,
    find_named,
)
from clara_jax.convert.names import LAYER_ROWS, TreeBuilder, lora_tensors
from clara_jax.convert.pth import read_pth
from clara_jax.errors import ClaraError
from clara_jax.files import read_json
from clara_jax.shapes import Params
from clara_jax.text import NAME_KEY

ROLES = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
    "decoder_adapter": "generator",
}
"""The original's names of the adapters, and ours."""

ADAPTERS, LAYERS = "adapters.pth", "decoder_first_last_layers.pth"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SETTINGS = (
    "compr_rate",
    "decoder_model_name",
    "doc_max_length",
    "generation_top_k",
    "lora_r",
    "sep",
    "training_stage",
)
"""Fields of ``config.json`` that our own settings hold."""

_WRONG_BASE = 0.1
"""Relative distance of embeddings above which the base is taken for another model."""


def is_apple_checkpoint(folder: Path) -> bool:
    """Whether `folder` was written by the original implementation."""
    return (folder / ADAPTERS).is_file()


def find_base(folder: Path, base: str = "") -> str:
    """Where the base model of a checkpoint is.

    Args:
      folder: the checkpoint.
      base: an answer given by the user, which wins.

    Returns:
      A path (``decoder_model_name`` is tried as it is, then below the checkpoint and
      each of its parents) or, where there is none, the name for the hub.
    """
    if base:
        return base
    path = folder / "config.json"
    name = read_json(path).get("decoder_model_name")
    if not isinstance(name, str) or not name:
        raise ClaraError(f"{path}: field 'decoder_model_name' is missing")
    return find_named(folder, name)


def read_apple_checkpoint(folder: Path, base: ModelFolder) -> ModelFolder:
    """Read a checkpoint on top of its base model.

    Args:
      folder: the checkpoint.
      base: the model of `find_base`. Its first text rows (and head columns) are
        replaced where the checkpoint's differ, as the original does on loading.

    Returns:
      The base with settings, adapters (float32) and special rows.

    Raises:
      ClaraError: a file is missing, damaged or refused; a name, rank or shape does not
        fit the base; or the checkpoint uses a feature that is not supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    memory, rank, top_k, stage = _settings(values, str(path))
    adapters, lora, adapter_dtype = _read_adapters(folder / ADAPTERS, base.config, rank)
    special, rows = memory.num_memory + 3, {}
    text_vocab = len(base.tokenizer)
    base.tokenizer.init_kwargs[NAME_KEY] = values.get("decoder_model_name", "")
    params = dict(base.params)
    tables = read_pth(folder / LAYERS)
    for name, group, array in (
        (EMBEDDING, "embed", "embedding"),
        (HEAD, "head", "kernel"),
    ):
        if name == HEAD and base.config.tied:
            continue
        where = f"{folder / LAYERS}: tensor '{name}'"
        table = _table(tables.get(name), where, text_vocab, special, base.config)
        rows[name] = table[text_vocab:].astype(np.float32)
        stored = params[group][array]
        ours = stored if group == "embed" else stored.T
        merged = _merged(ours, table[:text_vocab], where)
        params[group] = {array: merged if group == "embed" else merged.T}
    for name in tables:
        if name not in (EMBEDDING, HEAD):
            raise ClaraError(f"{folder / LAYERS}: tensor '{name}' is not expected")
    marks: dict[str, Params] = {"marks": rows[EMBEDDING][-3:]}
    if HEAD in rows:
        marks["head"] = rows[HEAD]
    return ModelFolder(
        config=base.config,
        params=params,
        tokenizer=base.tokenizer,
        clara=ClaraSettings(
            memory=memory,
            lora=lora,
            selection=SelectionConfig(top_k=top_k),
            text_vocab=text_vocab,
            stage=stage,
            original=OriginalFiles(
                adapter_dtype=adapter_dtype,
                table_dtype=_known(tables[EMBEDDING].dtype),
                fields={k: v for k, v in values.items() if k not in SETTINGS},
            ),
        ),
        adapters={**adapters, "memory": rows[EMBEDDING][:-3]},
        rows=marks,
        eos_ids=base.eos_ids,
    )


def _settings(values: dict[str, Any], where: str) -> tuple[MemoryConfig, int, int, str]:
    def whole(name: str, default: int | None = None) -> int:
        value = values.get(name, default)
        if type(value) is not int or value < 1:
            raise ClaraError(
                f"{where}: field '{name}' must be a whole number above 0, not {value!r}"
            )
        return value

    unsupported = {
        "compr_model_name": (None, "", False),
        "lora": (True, None),
        "different_mem_tokens": (True, None),
    }
    for name, accepted in unsupported.items():
        if values.get(name) not in accepted:
            raise ClaraError(
                f"{where}: field '{name}' is {values[name]!r}, which is not supported"
            )
    memory = MemoryConfig(
        doc_max_length=whole("doc_max_length"),
        compression_rate=whole("compr_rate"),
        separator=bool(values.get("sep", True)),
    )
    stage = str(values.get("training_stage", ""))
    return memory, whole("lora_r"), whole("generation_top_k", 1), stage


def _read_adapters(
    path: Path, config: ModelConfig, rank: int
) -> tuple[dict[str, Params], LoraConfig, str]:
    groups = read_pth(path, keep=lambda key: key not in (EMBEDDING, HEAD))
    for name, group in groups.items():
        if name not in ROLES or not isinstance(group, dict):
            raise ClaraError(
                f"{path}: adapter '{name}' is unknown; known are {', '.join(ROLES)}"
            )
    if not groups:
        raise ClaraError(f"{path}: holds no adapter")
    names = {key for group in groups.values() for key in group}
    lora = LoraConfig(rank=rank, alpha=2.0 * rank, dropout=0.1)
    absent = [
        row.ours.rpartition("/")[2]
        for row in LAYER_ROWS
        if row.inputs and not any(f".{row.hf}.lora_A." in name for name in names)
    ]
    wanted = {t.path[-2] for t in lora_tensors(config, lora)}
    if wanted & set(absent):
        layers = tuple(sorted(wanted - set(absent)))
        lora = LoraConfig(rank=rank, alpha=2.0 * rank, dropout=0.1, layers=layers)
    tensors = lora_tensors(config, lora)
    adapters, dtypes = {}, set()
    for name, group in groups.items():
        builder = TreeBuilder(tensors, np.float32, f"{path}: {name}")
        for key, array in group.items():
            if not isinstance(array, np.ndarray):
                raise ClaraError(f"{path}: {name}: '{key}' is no tensor")
            builder.put(key, array)
            dtypes.add(_known(array.dtype))
        adapters[ROLES[name]] = builder.finish()
    return adapters, lora, dtypes.pop() if len(dtypes) == 1 else ""


def _known(dtype: np.dtype) -> str:
    return dtype.name if dtype.name in DTYPES else ""


def _table(
    table: Any, where: str, text_vocab: int, special: int, config: ModelConfig
) -> np.ndarray:
    if not isinstance(table, np.ndarray):
        raise ClaraError(f"{where} is missing")
    shape = (text_vocab + special, config.width)
    if table.shape != shape:
        raise ClaraError(
            f"{where} has shape {list(table.shape)}, but {list(shape)} is needed: the "
            f"base tokenizer's {text_vocab} tokens and {special} special ones"
        )
    if text_vocab > config.vocab_size:
        raise ClaraError(
            f"{where}: the base tokenizer has {text_vocab} tokens, but the base model "
            f"only {config.vocab_size} rows"
        )
    return table


def _merged(ours: np.ndarray, theirs: np.ndarray, where: str) -> np.ndarray:
    """Our table `[V, D]` with the checkpoint's text rows where they are others."""
    rows = ours[: len(theirs)]
    if np.array_equal(rows.astype(theirs.dtype), theirs):
        return ours
    old, new = rows.astype(np.float32), theirs.astype(np.float32)
    distance = float(np.linalg.norm(new - old) / max(np.linalg.norm(old), 1e-30))
    if not distance <= _WRONG_BASE:
        raise ClaraError(
            f"{where} differs from the base model's by {distance:.0%}; this is another "
            "base model: give the right one with --base"
        )
    merged = np.array(ours)
    merged[: len(theirs)] = theirs
    return merged
