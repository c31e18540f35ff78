"""A model in host memory, whatever it was read from, and what is asked of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clara_jax.config import LoraConfig, MemoryConfig, ModelConfig, SelectionConfig
from clara_jax.errors import ClaraError
from clara_jax.shapes import Params
from clara_jax.text import NAME_KEY


@dataclasses.dataclass(frozen=True)
class OriginalFiles:
    """What the files of an original checkpoint said and nothing else here holds.

    Kept so that the checkpoint can be written again as it was.

    Attributes:
      adapter_dtype, table_dtype: types of ``adapters.pth`` and of
        ``decoder_first_last_layers.pth``; empty for a model that we trained.
      fields: of ``config.json``.
    """

    adapter_dtype: str = ""
    table_dtype: str = ""
    fields: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ClaraSettings:
    """What a CLaRa model needs to know beside its backbone's shape.

    Attributes:
      text_vocab: n, the base tokenizer's length; special ids start here.
      backbone: where the frozen weights are: ``backbone`` is this folder's own; else
        a path (relative to this folder, or absolute) or hub name for `load_model`.
      stage: the stage that wrote the adapters; informative.
      original: of a checkpoint of the original that was read and not trained since.
    """

    memory: MemoryConfig
    lora: LoraConfig
    selection: SelectionConfig
    text_vocab: int
    backbone: str = "backbone"
    stage: str = ""
    original: OriginalFiles = OriginalFiles()


@dataclasses.dataclass
class ModelFolder:
    """A model in host memory.

    Attributes:
      config: shape of the backbone.
      params: its parameter tree, numpy arrays.
      tokenizer: the base tokenizer, before special tokens are added.
      clara: settings, or None for a plain base model.
      adapters: trees by role, and ``memory`` ``[M, D]``; None for a base model.
      rows: ``marks`` ``[3, D]`` (AE, ENC, SEP) and, untied, ``head`` ``[M+3, D]``.
      eos_ids: ids that end an answer.
    """

    config: ModelConfig
    params: Params
    tokenizer: Any
    clara: ClaraSettings | None = None
    adapters: dict[str, Params] | None = None
    rows: dict[str, Params] | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def backbone(self) -> dict[str, Params]:
        """What losses and generation take as ``backbone``."""
        backbone = {"params": self.params}
        return backbone if self.rows is None else {**backbone, "rows": self.rows}


def clara_parts(
    model: ModelFolder,
) -> tuple[ClaraSettings, dict[str, Params], dict[str, Params]]:
    """Settings, adapters and frozen rows of a CLaRa model.

    Raises:
      ClaraError: it is a base model.
    """
    if model.clara is None or model.adapters is None or model.rows is None:
        raise ClaraError(
            "the source is a base model without CLaRa adapters; give a trained one"
        )
    return model.clara, model.adapters, model.rows


def role_adapter(model: ModelFolder, role: str) -> Params:
    """One role's LoRA tree.

    Raises:
      ClaraError: the model has no such role.
    """
    _, adapters, _ = clara_parts(model)
    if role not in adapters:
        roles = ", ".join(sorted(set(adapters) - {"memory"}))
        raise ClaraError(f"the source has no {role}; it has {roles}")
    return adapters[role]


def base_name(model: ModelFolder, name: str = "") -> str:
    """What a written config calls the base model: `name`, else what it came from."""
    name = name or str(model.tokenizer.init_kwargs.get(NAME_KEY, ""))
    return name or str(model.tokenizer.name_or_path or "")


def find_named(folder: Path, name: str) -> str:
    """Where the base model is that a file in `folder` names.

    Returns:
      A path (`name` is tried as it is, then below the folder and each of its parents)
      or, where there is none, the name for the hub.
    """
    for place in (Path(), *(folder.resolve(), *folder.resolve().parents)):
        if (place / name).is_dir():
            return str(place / name)
    return name
