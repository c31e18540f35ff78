"""Checkpoint folders of the original CLaRa implementation, read and written.

A folder holds ``config.json``, ``adapters.pth`` (LoRA by adapter) and
``decoder_first_last_layers.pth`` (the resized embedding, and the head when untied).
Every other weight is that of the base model that ``config.json`` names. Which adapter
has a copy of the tables, the order of entries and the fields of ``config.json`` are
those of files that the original wrote at each stage.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.commands import note
from clara_jax.config import (
    DTYPES,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    SelectionConfig,
)
from clara_jax.convert.hf_config import Fields
from clara_jax.convert.model_folder import (
    FAR,
    ClaraSettings,
    ModelFolder,
    OriginalFiles,
    new_folder,
)
from clara_jax.convert.names import (
    EMBEDDING,
    HEAD,
    TensorName,
    covered_layers,
    lora_tensors,
)
from clara_jax.convert.pth import Parameter, read_pth, write_pth
from clara_jax.convert.tensors import (
    Outgoing,
    alike,
    build_tree,
    check_tensors,
    extract,
)
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json
from clara_jax.shapes import Params
from clara_jax.text import NAME_KEY

ROLES = {
    "decoder_adapter": "generator",
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
}
"""The original's names of the adapters in the order of its files, and ours."""

STAGES = {
    "scp": "stage1",
    "instruct": "stage1_2",
    "end_to_end": "stage2",
    "rerank": "stage2_pretrain_retrieval",
}
"""Our stages, and the original's names of them."""

ADAPTERS, LAYERS = "adapters.pth", "decoder_first_last_layers.pth"
_WITH_TABLES = {
    "stage1": ("decoder_adapter", "encoder_adapter"),
    "stage1_2": ("decoder_adapter",),
}
"""Adapters that PEFT stores with the resized tables: those new in their stage."""

_FIELDS = read_json(Path(__file__).with_name("apple_config.json"))
"""Fields of ``config.json`` that our settings do not hold."""


def apple_base(folder: Path) -> str:
    """Return the base model that a checkpoint names."""
    path = folder / "config.json"
    fields = Fields(read_json(path), str(path))
    if name := fields.get("decoder_model_name", str):
        return name
    raise fields.error("field 'decoder_model_name' is empty")


def apple_rate(folder: Path) -> int:
    """Return the compression rate of a checkpoint."""
    path = folder / "config.json"
    return Fields(read_json(path), str(path)).positive("compr_rate")


def read_apple_checkpoint(folder: Path, base: ModelFolder) -> ModelFolder:
    """Put a checkpoint's settings, adapters (float32) and special rows on its base.

    The base's first text rows (and head columns) are replaced where the checkpoint's
    differ, as the original does on loading.

    Raises:
      ClaraError: a file is missing, damaged or refused; a name, rank or shape does not
        fit the base; or a feature is not supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    clara = _settings(Fields(values, str(path)), len(base.tokenizer))
    groups = _read_groups(folder / ADAPTERS)
    copies = _take_copies(groups)
    given = folder / ADAPTERS, groups, base.config, clara.lora
    adapters, layers, dtype = _made_adapters(*given)
    base.tokenizer.init_kwargs[NAME_KEY] = values.get("decoder_model_name", "")
    tables = read_pth(folder / LAYERS)
    params, special = dict(base.params), {}
    places = {EMBEDDING: ("embed", "embedding"), HEAD: ("head", "kernel")}
    for name in tables:
        if name not in places:
            raise ClaraError(f"{folder / LAYERS}: tensor '{name}' is not expected")
    for (adapter, name), copy in copies.items():
        table = tables.get(name, tables.get(EMBEDDING) if base.config.tied else None)
        if not isinstance(table, np.ndarray) or not alike(copy, table):
            raise ClaraError(
                f"{folder / ADAPTERS}: {adapter}: '{name}' is not the table of {LAYERS}"
                ", and there is no place for both; save the checkpoint again"
            )
    if base.config.tied:
        del places[HEAD]
    for name, (group, array) in places.items():
        where = f"{folder / LAYERS}: tensor '{name}'"
        _check_table(tables.get(name), where, clara, base.config)
        text, special[group] = np.split(tables[name], [clara.text_vocab])
        special[group] = special[group].astype(np.float32)
        stored = params[group][array]
        merged = _merged(stored if group == "embed" else stored.T, text, where)
        params[group] = {array: merged if group == "embed" else merged.T}
    embedding = special.pop("embed")
    original = OriginalFiles(
        adapter_dtype=dtype,
        table_dtype=_known(tables[EMBEDDING].dtype),
        fields={k: v for k, v in values.items() if k not in _fields(clara)},
    )
    lora = dataclasses.replace(clara.lora, layers=layers)
    return dataclasses.replace(
        base,
        params=params,
        clara=dataclasses.replace(clara, lora=lora, original=original),
        adapters={**adapters, "memory": embedding[:-3]},
        rows={"marks": embedding[-3:], **special},
    )


def _settings(fields: Fields, text_vocab: int) -> ClaraSettings:
    fields.only("compr_model_name", None, "", False)
    fields.only("lora", True, None)
    fields.only("different_mem_tokens", True, None)
    rank = fields.positive("lora_r")
    return ClaraSettings(
        memory=MemoryConfig(
            doc_max_length=fields.positive("doc_max_length"),
            compression_rate=fields.positive("compr_rate"),
            separator=bool(fields.values.get("sep", True)),
        ),
        lora=LoraConfig(rank=rank, alpha=2.0 * rank, dropout=0.1),
        selection=SelectionConfig(top_k=fields.positive("generation_top_k", 1)),
        text_vocab=text_vocab,
        stage=str(fields.values.get("training_stage", "")),
    )


def _fields(clara: ClaraSettings, name: str = "") -> dict[str, Any]:
    """Return the fields of ``config.json`` that our settings hold."""
    return {
        "compr_rate": clara.memory.compression_rate,
        "decoder_model_name": name,
        "doc_max_length": clara.memory.doc_max_length,
        "generation_top_k": clara.selection.top_k,
        "lora_r": clara.lora.rank,
        "sep": clara.memory.separator,
        "training_stage": STAGES.get(clara.stage, clara.stage),
    }


def _read_groups(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each adapter, by their names."""
    groups = read_pth(path)
    for name, group in groups.items():
        if name not in ROLES or not isinstance(group, dict):
            known = ", ".join(ROLES)
            raise ClaraError(f"{path}: adapter '{name}' is unknown; known are {known}")
        for key, array in group.items():
            if not isinstance(array, np.ndarray):
                raise ClaraError(f"{path}: {name}: '{key}' is not a tensor")
    return groups


def _take_copies(groups: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Take the tables that PEFT stores with some adapters out of their tensors."""
    tables = (EMBEDDING, HEAD)
    found = [(name, key) for name in groups for key in tables if key in groups[name]]
    return {(name, key): groups[name].pop(key) for name, key in found}


def _made_adapters(
    path: Path, groups: dict[str, Any], config: ModelConfig, lora: LoraConfig
) -> tuple[dict[str, Params], tuple[str, ...], str]:
    """Return trees by role, the layers covered, and the type that all are stored in."""
    if not groups:
        raise ClaraError(f"{path}: holds no adapter")
    layers = covered_layers(config, (key for group in groups.values() for key in group))
    tensors = lora_tensors(config, dataclasses.replace(lora, layers=layers))
    adapters, dtypes = {}, set()
    for name, group in groups.items():
        shapes = {key: array.shape for key, array in group.items()}
        check_tensors(tensors, shapes, f"{path}: {name}")
        dtypes |= {_known(array.dtype) for array in group.values()}
        adapters[ROLES[name]] = build_tree(
            tensors, lambda tensor, group=group: group[tensor.name], np.float32
        )
    return adapters, layers, dtypes.pop() if len(dtypes) == 1 else ""


def _known(dtype: np.dtype) -> str:
    return dtype.name if dtype.name in DTYPES else ""


def _check_table(
    table: Any, where: str, clara: ClaraSettings, config: ModelConfig
) -> None:
    if not isinstance(table, np.ndarray):
        raise ClaraError(f"{where} is missing")
    text, special, rows = clara.text_vocab, clara.memory.num_special, config.vocab_size
    shape = (text + special, config.width)
    if table.shape != shape:
        raise ClaraError(
            f"{where} has shape {list(table.shape)}, but {list(shape)} is needed: the "
            f"base tokenizer's {text} tokens and {special} special ones"
        )
    if text > rows:
        have = f"the base tokenizer has {text} tokens, but the base model only {rows}"
        raise ClaraError(f"{where}: {have} rows")


def _merged(ours: np.ndarray, theirs: np.ndarray, where: str) -> np.ndarray:
    """Return our table `[V, D]`, with the checkpoint's text rows if they differ."""
    rows = ours[: len(theirs)]
    if np.array_equal(rows.astype(theirs.dtype), theirs):
        return ours
    old, new = rows.astype(np.float32), theirs.astype(np.float32)
    distance = float(np.linalg.norm(new - old) / max(np.linalg.norm(old), 1e-30))
    if not distance <= FAR:
        raise ClaraError(
            f"{where} differs from the base model's by {distance:.0%}; this is another "
            "base model: give the right one with --base"
        )
    changed = np.any(new != old, axis=1).sum()
    note(
        f"{where} differs from the base model's by {distance:.1%}, in {changed} of "
        f"{len(new)} tokens; theirs are taken from the checkpoint"
    )
    merged = np.array(ours)
    merged[: len(theirs)] = theirs
    return merged


def write_apple_checkpoint(
    path: str | os.PathLike, model: ModelFolder, dtype: str = "", name: str = ""
) -> None:
    """Write a checkpoint that the original implementation loads, to a new folder.

    It always scales LoRA by 2 (another scale is put into the B matrices), adapts all
    linear layers (others get zeros), selects at temperature 0.02 and drops out 0.1 in
    training. Of the base only the text rows are written; the original takes the rest
    from the model that is named: by `name` (hub name or path) or, if that is empty, as
    it came here. All tensors are of `dtype`; empty takes that of the checkpoint that
    the model was read from, else the base's.

    Raises:
      ClaraError: a base model, no name for the base, or a folder that is not empty or
        cannot be written.
    """
    clara, adapters, _ = model.parts()
    fields = {**_FIELDS, "lora_r_compressor": clara.lora.rank, **clara.original.fields}
    fields |= _fields(clara, model.needed_name(name))
    stage, stored = fields["training_stage"], model.config.param_dtype
    kind = dtype or clara.original.adapter_dtype or stored
    # PEFT stores a tied head too: the embedding under both names, in one storage.
    tables = model.tables(kind)
    extra = {EMBEDDING: tables["embed"], HEAD: tables.get("head", tables["embed"])}
    groups = {}
    for theirs, ours in ROLES.items():
        if ours in adapters:
            groups[theirs] = _adapter(model, clara.lora, adapters[ours], kind)
            if theirs in _WITH_TABLES.get(stage, ()):
                groups[theirs] |= extra
    tables = model.tables(dtype or clara.original.table_dtype or stored)
    layers = {EMBEDDING: Parameter(tables["embed"], stage == "stage1")}
    if "head" in tables:
        layers[HEAD] = Parameter(tables["head"])
    with new_folder(path) as folder:
        write_pth(folder / ADAPTERS, groups)
        write_pth(folder / LAYERS, layers)
        write_json(folder / "config.json", dict(sorted(fields.items())))


def _adapter(
    model: ModelFolder, lora: LoraConfig, tree: Params, dtype: str
) -> dict[str, Outgoing]:
    """Return LoRA matrices of every linear layer, at the original's fixed scale."""
    factor = np.float32(lora.alpha / lora.rank / 2)

    def made(tensor: TensorName) -> list[np.ndarray]:
        if not lora.covers(tensor.path[-2]):
            return [np.zeros(tensor.shape, np.float32)]
        array = extract(tree, tensor)
        return [array * factor if tensor.path[-1] == "b" else array]

    def registered(tensor: TensorName) -> tuple:
        # As the modules of transformers are registered; Phi-3's o_proj is first.
        _, room, name, _ = tensor.path
        return tensor.layer, room, name == "query_key_value"

    every = lora_tensors(model.config, dataclasses.replace(lora, layers=("all",)))
    return {
        t.name: Outgoing(t.shape, np.dtype(dtype), functools.partial(made, t))
        for t in sorted(every, key=registered)
    }
