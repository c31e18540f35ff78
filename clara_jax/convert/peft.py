"""LoRA adapters as PEFT folders, one a role, beside what such a folder cannot hold.

compressor/ ...            each adapter_config.json and adapter_model.safetensors
special_rows.safetensors   embedding [M+3, D] and, untied, head [M+3, D]
clara.json                 memory, LoRA and selection settings
README.md                  how to use it

The rows of the special tokens (memory tokens, AE, ENC, SEP) belong below the base
model's text rows, at ids from ``text_vocab`` on. A role loaded with PEFT on the base
model gives our logits for text, and needs these rows for memory tokens.

Source: PEFT ``docs/source/developer_guides/checkpoint.md``.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clara_jax.checkpoint import replace_folder
from clara_jax.clara import ROLES
from clara_jax.commands import note
from clara_jax.config import LoraConfig, ModelConfig, to_dict
from clara_jax.convert.hf_config import Fields
from clara_jax.convert.model_folder import (
    ModelFolder,
    OriginalFiles,
    check_base,
    check_destination,
    folder_beside,
    new_folder,
    read_clara_settings,
)
from clara_jax.convert.names import (
    EMBEDDING,
    HEAD,
    TensorName,
    covered_layers,
    linear_rows,
    lora_tensors,
)
from clara_jax.convert.tensors import (
    SafetensorsFile,
    alike,
    outgoing,
    stacked,
    write_safetensors,
)
from clara_jax.errors import ClaraError
from clara_jax.files import read_json, write_json
from clara_jax.shapes import Params
from clara_jax.text.prompts import marker_names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPECIAL, SETTINGS, README = "special_rows.safetensors", "clara.json", "README.md"
FILES = (SETTINGS, SPECIAL)
"""Files by which a folder of this form is known."""

_PREFIX = "base_model.model."

_MORE_THAN_LORA = (
    *("use_dora", "use_bdlora", "use_qalora", "lora_bias", "rank_pattern"),
    *("alpha_pattern", "fan_in_fan_out", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "arrow_config"),
    "kasa_config",
)
"""Fields of PEFT's configuration that make more of an adapter than plain LoRA."""

_TEXT = Path(__file__).with_name("peft_readme.md").read_text(encoding="utf-8")


def write_peft_folder(
    path: str | os.PathLike,
    model: ModelFolder,
    roles: Sequence[str] = (),
    dtype: str = "",
    name: str = "",
) -> None:
    """Write adapters as PEFT folders to a new folder, and special rows beside them.

    Args:
      path, model: a new or empty folder; a CLaRa model.
      roles: which adapters; empty takes all.
      dtype: of the LoRA matrices; empty is float32, in which special rows always are.
      name: hub name or path of the base model; empty takes the one that it came from.

    Raises:
      ClaraError: a base model, a role that it does not have, no name for the base, or a
        folder that is not empty or cannot be written.
    """
    with new_folder(path) as folder:
        _write(folder, model, roles, dtype or "float32", name)


def export_adapters(
    path: str | os.PathLike, model: ModelFolder, base: str, card: str
) -> None:
    """Write a model's adapters as they are shipped: all, in bfloat16, with a card.

    An older model at `path` is replaced whole, by rename, and stays if anything fails.
    The hub name `base` is all that is kept of the base model; `card` is the README.md.

    Raises:
      ClaraError: a base model; a destination that holds something else, or cannot be
        written.
    """
    path = Path(path).absolute()
    if not all((path / name).is_file() for name in FILES):
        check_destination(path)
    with folder_beside(path) as folder:
        _write(folder, model, (), "bfloat16", base)
        (folder / README).write_text(card, encoding="utf-8")
        replace_folder(folder, path)


def _write(
    folder: Path, model: ModelFolder, roles: Sequence[str], dtype: str, name: str
) -> None:
    clara, adapters, rows = model.parts()
    base = model.needed_name(name)
    alpha, modules = clara.lora.alpha, linear_rows(model.config, clara.lora)
    values = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": clara.lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": clara.lora.rank,
        "target_modules": [row.hf.rpartition(".")[2] for row in modules],
        "task_type": "CAUSAL_LM",
    }
    roles = tuple(roles) or tuple(role for role in ROLES if role in adapters)
    for role in roles:
        tree, tensors = model.adapter(role), {}
        for tensor in lora_tensors(model.config, clara.lora, _PREFIX):
            tensors[tensor.name] = outgoing(tree, tensor, dtype)
        write_json(folder / role / CONFIG, values)
        write_safetensors(folder / role / WEIGHTS, tensors)
    special = {"embedding": stacked("float32", adapters["memory"], rows["marks"])}
    if "head" in rows:
        special["head"] = stacked("float32", rows["head"])
    settings = model.settings(backbone=base, original=OriginalFiles())
    write_safetensors(folder / SPECIAL, special)
    write_json(folder / SETTINGS, to_dict(settings))
    names = marker_names(clara.memory.num_memory)
    text = _TEXT.format(
        base=base,
        roles=", ".join(f"`{role}/`" for role in roles),
        first=roles[0],
        tokens=f"`<{names[0]}>` to `<{names[-4]}>`, `<AE>`, `<ENC>`, `<SEP>`",
        start=clara.text_vocab,
        special=SPECIAL,
        head=", `head`" if "head" in rows else "",
        heads=" and of its head" if "head" in rows else "",
    )
    (folder / README).write_text(text)


def read_peft_folder(folder: Path, base: ModelFolder) -> ModelFolder:
    """Put the adapters and rows of a folder of the form above on their base.

    The adapters may have been trained further with PEFT in the meantime, and their
    rank, scale and layers with them, as long as all are alike.

    Raises:
      ClaraError: a file is missing or damaged, or does not fit the base.
    """
    clara, config = read_clara_settings(folder), base.config
    if clara is None:
        raise ClaraError(f"{folder}: has no {SETTINGS}")
    roles = [role for role in ROLES if (folder / role / CONFIG).is_file()]
    if not roles:
        raise ClaraError(f"{folder}: has no adapter; known are {', '.join(ROLES)}")
    others = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if others := [name for name in others if name not in ROLES]:
        known = ", ".join(ROLES)
        note(f"{folder}: left out: {', '.join(others)}; adapters are {known}")
    if len(base.tokenizer) != clara.text_vocab:
        raise ClaraError(
            f"{folder / SETTINGS}: text_vocab is {clara.text_vocab}, but the base's "
            f"tokenizer has {len(base.tokenizer)} tokens; give the right one with "
            "--base"
        )
    check_base(folder / SETTINGS, clara, base.params)
    special, count = SafetensorsFile(folder / SPECIAL), clara.memory.num_memory
    tensors = [
        TensorName(name, (name,), None, (clara.memory.num_special, config.width))
        for name in (("embedding",) if config.tied else ("embedding", "head"))
    ]
    rows = special.tree(tensors, special.shapes)
    tables = {EMBEDDING: (base.params["embed"]["embedding"], rows["embedding"])}
    tables[HEAD] = tables[EMBEDDING]
    if not config.tied:
        tables[HEAD] = (base.params["head"]["kernel"].T, rows["head"])
    read = {}
    for role in roles:
        read[role] = read_peft_adapter(folder / role, config, clara.text_vocab, tables)
    dropout = clara.lora.dropout
    loras = [dataclasses.replace(lora, dropout=dropout) for _, lora in read.values()]
    for role, lora in zip(roles, loras, strict=True):
        if lora != loras[0]:
            raise ClaraError(
                f"{folder / role / CONFIG}: its rank, scale or layers are others than "
                f"those of {roles[0]}; one model has one of each"
            )
    lora = loras[0]
    if linear_rows(config, lora) == linear_rows(config, clara.lora):
        lora = dataclasses.replace(lora, layers=clara.lora.layers)
    embedding = rows.pop("embedding")
    return dataclasses.replace(
        base,
        clara=dataclasses.replace(clara, lora=lora, backbone="backbone"),
        adapters={role: tree for role, (tree, _) in read.items()}
        | {"memory": embedding[:count]},
        rows={"marks": embedding[count:], **rows},
    )


def read_peft_adapter(
    folder: Path,
    config: ModelConfig,
    text_vocab: int = 0,
    tables: Mapping[str, tuple[Any, Any]] | None = None,
) -> tuple[Params, LoraConfig]:
    """Read one PEFT folder for a base of this shape: its LoRA tree and settings.

    PEFT may store copies of the embedding and the head, which LoRA leaves as they are.
    They are taken for what we have if their values are.

    Args:
      folder, config: where it is; the base's shape.
      text_vocab: n, the base tokenizer's length.
      tables: by PEFT's name of a copy, the base's rows `[V, D]` and those of the
        special tokens `[M+3, D]`. Copies of others are refused.

    Raises:
      ClaraError: a file is missing or damaged, is not plain LoRA, does not fit, or
        holds a tensor that has no place in a CLaRa model.
    """
    fields = Fields(read_json(folder / CONFIG), str(folder / CONFIG))
    fields.only("peft_type", "LORA")
    fields.only("bias", "none", None)
    for name in _MORE_THAN_LORA:
        fields.only(name, False, None, {}, [])
    rank, alpha = fields.positive("r"), fields.get("lora_alpha", float)
    if fields.values.get("use_rslora"):
        alpha *= math.sqrt(rank)
    dropout = fields.get("lora_dropout", float, 0.0)
    file, shapes = SafetensorsFile(folder / WEIGHTS), {}
    for name, shape in file.shapes.items():
        ours = (tables or {}).get(name.removeprefix(_PREFIX))
        if ours is None:
            shapes[name] = shape
        else:
            where = f"{file.path}: tensor '{name}'"
            _check_copy(where, file.tensor(name), text_vocab, *ours)
    for module in fields.values.get("modules_to_save") or ():
        if not any(f".{module}." in name for name in file.shapes):
            raise ClaraError(
                f"{file.path}: has no tensor of {module}, which 'modules_to_save' of "
                f"{CONFIG} names; save the adapter again"
            )
    layers: Any = covered_layers(config, shapes)
    lora = LoraConfig(rank, alpha, dropout, layers)
    return file.tree(lora_tensors(config, lora, _PREFIX), shapes), lora


def _check_copy(where: str, copy: Any, n: int, base: Any, special: Any) -> None:
    """Refuse a copy of a table whose rows are not the base's and the special ones.

    Rows of no token are not looked at.
    """
    shape, width = list(copy.get_shape()), base.shape[1]
    if len(shape) != 2 or shape[1] != width or shape[0] < n:
        raise ClaraError(
            f"{where} has shape {shape}, but a copy of the base's table has [{n} or "
            f"more, {width}]; give the base that it was trained on with --base"
        )
    if not alike(copy[:n], base[:n]):
        raise ClaraError(
            f"{where} is not the base's table: it was trained, which a CLaRa model has "
            "no place for, or the base is another; give the right one with --base, or "
            "train without modules_to_save"
        )
    end = min(shape[0], n + len(special))
    if end == n:
        return
    rows = copy[n:end]
    if not alike(rows, special[: end - n]) and not alike(rows, base[n:end]):
        raise ClaraError(
            f"{where} has other rows from {n} on than {SPECIAL}; put the right ones "
            "into that file, and take the tensor out of this"
        )
