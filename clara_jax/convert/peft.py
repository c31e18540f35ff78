"""LoRA adapters as PEFT folders, one a role, beside what such a folder cannot hold.

compressor/ generator/ reasoner/   each ``adapter_config.json`` and
                                   ``adapter_model.safetensors``
special_rows.safetensors           rows of the special tokens: ``embedding [M+3, D]``
                                   and, untied, ``head [M+3, D]``
clara.json                         memory, LoRA and selection settings
README.md                          how to use it

The rows of the special tokens (memory tokens, AE, ENC, SEP) belong below the base
model's text rows, at ids from ``text_vocab`` on. LoRA has no place for them: a role
loaded with ``peft.PeftModel.from_pretrained`` on the base model gives our logits for
text, and needs these rows for memory tokens.

Source: PEFT ``docs/source/developer_guides/checkpoint.md``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.clara import ROLES
from clara_jax.config import LoraConfig, ModelConfig, parse, to_dict
from clara_jax.convert.folder import new_folder
from clara_jax.convert.loaded import (
    ClaraSettings,
    ModelFolder,
    OriginalFiles,
    base_name,
    clara_parts,
    role_adapter,
)
from clara_jax.convert.names import TreeBuilder, layer_rows, lora_tensors
from clara_jax.convert.outgoing import outgoing, stacked
from clara_jax.convert.shards import SafetensorsFile
from clara_jax.convert.shards_writer import write_safetensors
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json
from clara_jax.shapes import Params
from clara_jax.text.prompts import marker_names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPECIAL, SETTINGS = "special_rows.safetensors", "clara.json"
_PREFIX = "base_model.model."

_README = """\
# LoRA adapters of a CLaRa model

Base model: `{base}`. One PEFT folder a role: {roles}.

```python
base = transformers.AutoModelForCausalLM.from_pretrained("{base}")
model = peft.PeftModel.from_pretrained(base, "{first}")
```

The special tokens ({tokens}) have ids from {start} on. A LoRA folder
cannot hold their rows: they are in `{special}` (`embedding`{head}), to be
put below the first {start} rows of the base model's table{heads}. Without them a role
reads and writes text only.

`python -m clara_jax.convert peft FOLDER DESTINATION` makes one model of all this again.
"""


def is_peft_folder(folder: Path) -> bool:
    """Whether `folder` is of the form above."""
    return (folder / SPECIAL).is_file() and (folder / SETTINGS).is_file()


def write_peft_folder(
    path: str | os.PathLike,
    model: ModelFolder,
    roles: Sequence[str] = (),
    dtype: str = "",
    name: str = "",
) -> None:
    """Write a model's adapters as PEFT folders, and its special rows beside them.

    Args:
      path: a new or empty folder.
      model: a CLaRa model.
      roles: which adapters; empty takes all.
      dtype: type of the LoRA matrices; empty is float32, as we keep them. The special
        rows stay float32.
      name: hub name or path of the base model; empty takes the one that it came from.

    Raises:
      ClaraError: a base model, a role that it does not have, no name for the base, or a
        folder that is not empty or cannot be written.
    """
    clara, adapters, rows = clara_parts(model)
    base = base_name(model, name)
    if not base:
        raise ClaraError(
            "the source does not say what its base model is called; give its hub name "
            "or path with --base-name"
        )
    roles = tuple(roles) or tuple(role for role in ROLES if role in adapters)
    trees = {role: role_adapter(model, role) for role in roles}
    special = {"embedding": stacked("float32", adapters["memory"], rows["marks"])}
    if "head" in rows:
        special["head"] = stacked("float32", rows["head"])
    settings = dataclasses.replace(clara, backbone=base, original=OriginalFiles())
    values = _adapter_config(model.config, clara.lora, base)
    tensors = lora_tensors(model.config, clara.lora, _PREFIX)
    with new_folder(path) as folder:
        for role, tree in trees.items():
            write_json(folder / role / CONFIG, values)
            write_safetensors(
                folder / role / WEIGHTS,
                {t.name: outgoing(tree, t, dtype or "float32") for t in tensors},
            )
        write_safetensors(folder / SPECIAL, special)
        write_json(folder / SETTINGS, to_dict(settings))
        (folder / "README.md").write_text(_readme(settings, roles, "head" in special))


def peft_base(folder: Path) -> str:
    """The base model that a folder of the form above names."""
    return _settings(folder).backbone


def read_peft_folder(folder: Path, base: ModelFolder) -> ModelFolder:
    """Read a folder of the form above on top of its base model.

    The adapters may have been trained further with PEFT in the meantime, and their
    rank, scale and layers with them, as long as all are alike.

    Raises:
      ClaraError: a file is missing or damaged, or does not fit the base.
    """
    clara = _settings(folder)
    roles = [role for role in ROLES if (folder / role / CONFIG).is_file()]
    if not roles:
        raise ClaraError(f"{folder}: has no adapter; known are {', '.join(ROLES)}")
    if len(base.tokenizer) != clara.text_vocab:
        raise ClaraError(
            f"{folder / SETTINGS}: text_vocab is {clara.text_vocab}, but the base's "
            f"tokenizer has {len(base.tokenizer)} tokens; give the right one with "
            "--base"
        )
    adapters: dict[str, Params] = {}
    lora = None
    for role in roles:
        tree, found = read_peft_adapter(folder / role, base.config)
        if lora is not None and dataclasses.replace(found, dropout=0.0) != lora:
            raise ClaraError(
                f"{folder / role / CONFIG}: its rank, scale or layers are others than "
                f"those of {roles[0]}; one model has one of each"
            )
        lora = dataclasses.replace(found, dropout=0.0)
        adapters[role] = tree
    assert lora is not None
    lora = dataclasses.replace(lora, dropout=clara.lora.dropout)
    if {t.name for t in lora_tensors(base.config, lora)} == {
        t.name for t in lora_tensors(base.config, clara.lora)
    }:
        lora = dataclasses.replace(lora, layers=clara.lora.layers)
    file = SafetensorsFile(folder / SPECIAL)
    count = clara.memory.num_memory
    embedding = _rows(file, "embedding", count + 3, base.config)
    rows = {"marks": embedding[count:]}
    if not base.config.tied:
        rows["head"] = _rows(file, "head", count + 3, base.config)
    return dataclasses.replace(
        base,
        clara=dataclasses.replace(clara, lora=lora, backbone="backbone"),
        adapters={**adapters, "memory": embedding[:count]},
        rows=rows,
    )


def read_peft_adapter(folder: Path, config: ModelConfig) -> tuple[Params, LoraConfig]:
    """Read one PEFT folder: its LoRA tree and settings.

    Copies of the embedding and the head, which PEFT adds when they were resized, are
    passed over.

    Args:
      folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
      config: shape of the base model.

    Raises:
      ClaraError: a file is missing or damaged, it is no plain LoRA, or does not fit.
    """
    path = folder / CONFIG
    lora = _lora(read_json(path), str(path))
    file = SafetensorsFile(folder / WEIGHTS)
    names = [n for n in file if not n.endswith(("embed_tokens.weight", "head.weight"))]
    rows = [row for row in layer_rows(config) if row.inputs]
    present = [
        row.ours.rpartition("/")[2]
        for row in rows
        if any(f".{row.hf}.lora_" in name for name in names)
    ]
    if present and len(present) < len(rows):
        lora = dataclasses.replace(lora, layers=tuple(present))
    builder = TreeBuilder(
        lora_tensors(config, lora, _PREFIX), np.float32, str(folder / WEIGHTS)
    )
    for name in names:
        builder.check(name, file.shape(name))
        builder.put(name, file.read(name))
    return builder.finish(), lora


def _adapter_config(config: ModelConfig, lora: LoraConfig, base: str) -> dict[str, Any]:
    modules = [
        row.hf.rpartition(".")[2]
        for row in layer_rows(config)
        if row.inputs and lora.covers(row.ours.rpartition("/")[2])
    ]
    alpha = lora.alpha
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }


def _lora(values: dict[str, Any], where: str) -> LoraConfig:
    accepted: dict[str, tuple] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "lora_bias": (False, None),
    }
    for name, allowed in accepted.items():
        if values.get(name) not in allowed:
            raise ClaraError(
                f"{where}: field '{name}' is {values.get(name)!r}, which is not "
                "supported"
            )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)):
        raise ClaraError(
            f"{where}: fields 'r' and 'lora_alpha' must be numbers above 0"
        )
    if values.get("use_rslora"):
        alpha *= math.sqrt(rank)
    dropout = float(values.get("lora_dropout") or 0.0)
    return LoraConfig(rank=rank, alpha=float(alpha), dropout=dropout)


def _settings(folder: Path) -> ClaraSettings:
    path = folder / SETTINGS
    return parse(ClaraSettings, read_json(path), str(path))


def _rows(
    file: SafetensorsFile, name: str, count: int, config: ModelConfig
) -> np.ndarray:
    shape = (count, config.width)
    if name not in file:
        raise ClaraError(f"{file.path}: tensor '{name}' is missing")
    if file.shape(name) != shape:
        raise ClaraError(
            f"{file.path}: tensor '{name}' has shape {list(file.shape(name))}, but "
            f"{list(shape)} is needed"
        )
    return np.array(file.read(name), np.float32)


def _readme(clara: ClaraSettings, roles: Sequence[str], untied: bool) -> str:
    names = marker_names(clara.memory.num_memory)
    return _README.format(
        base=clara.backbone,
        roles=", ".join(f"`{role}/`" for role in roles),
        first=roles[0],
        tokens=f"`<{names[0]}>` to `<{names[-4]}>`, `<AE>`, `<ENC>`, `<SEP>`",
        start=clara.text_vocab,
        special=SPECIAL,
        head=", `head`" if untied else "",
        heads=" and of its head" if untied else "",
    )
