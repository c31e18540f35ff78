"""A model in host memory, and the model folder that `convert` and training write.

model.json   the backbone's shape
clara.json   memory, LoRA and selection settings (CLaRa models only)
tokenizer/   Hugging Face files of the base tokenizer, chat template included
backbone/    parameter tree (absent when clara.json names another folder)
adapters/    adapter trees, memory and mark rows (CLaRa models only)
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clara_jax.checkpoint import (
    WRITE_ERRORS,
    load_tree,
    remove_folder,
    replace_folder,
    write_tree,
)
from clara_jax.clara import ROLES, weights_distance, weights_sample
from clara_jax.commands import note
from clara_jax.config import (
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    SelectionConfig,
    parse,
    to_dict,
)
from clara_jax.convert.tensors import Outgoing, Placement, stacked
from clara_jax.errors import ClaraError
from clara_jax.files import (
    first_line,
    read_json,
    refuse_pointer,
    write_error,
    write_json,
)
from clara_jax.model import Transformer, abstract_variables
from clara_jax.shapes import Params
from clara_jax.text import NAME_KEY, load_tokenizer

FORMAT = "clara_jax model 1"
_SHAPE = (
    *("width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("tied", "fused_qkv", "fused_gate_up"),
)
"""Fields in which a base must agree with the adapters put on it."""

FAR = 0.5
"""Relative distance of weights from which on they are another model's."""


@dataclasses.dataclass(frozen=True)
class OriginalFiles:
    """What a checkpoint of the original needs to be written again as it was.

    The types of its two files, empty for a model that we trained, and the fields of its
    ``config.json``.
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
      frozen: `weights_sample` of the backbone that the adapters were trained on; empty
        where it is not known.
      original: of a checkpoint of the original that was read and not trained since.
    """

    memory: MemoryConfig
    lora: LoraConfig
    selection: SelectionConfig
    text_vocab: int
    backbone: str = "backbone"
    stage: str = ""
    frozen: dict = dataclasses.field(default_factory=dict, compare=False)
    original: OriginalFiles = OriginalFiles()


@dataclasses.dataclass
class ModelFolder:
    """A model in host memory, whatever it was read from.

    Attributes:
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
        rows = {} if self.rows is None else {"rows": self.rows}
        return {"params": self.params, **rows}

    def parts(self) -> tuple[ClaraSettings, dict[str, Params], dict[str, Params]]:
        """Return settings, adapters and frozen rows; refuse a base model."""
        if self.clara is None or self.adapters is None or self.rows is None:
            raise ClaraError(
                "the source is a base model without CLaRa adapters; give a trained one"
            )
        return self.clara, self.adapters, self.rows

    def roles(self) -> list[str]:
        """Return the roles that there is an adapter for, sorted."""
        return sorted(set(self.adapters or ()) - {"memory"})

    def adapter(self, role: str) -> Params:
        """Return one role's LoRA tree; refuse a role that the model does not have."""
        _, adapters, _ = self.parts()
        if role not in adapters:
            roles = ", ".join(self.roles())
            raise ClaraError(f"the source has no {role}; it has {roles}")
        return adapters[role]

    def tables(self, dtype: str) -> dict[str, Outgoing]:
        """Return ``embed`` and, untied, ``head``, with rows for the special tokens.

        These follow the text rows; those of a padded vocabulary are left out, and
        tokens that share the last row get copies of it.
        """
        clara, adapters, rows = self.parts()
        beyond = max(clara.text_vocab - self.config.vocab_size, 0)

        def with_rows(table: Any, *special: Any) -> Outgoing:
            copies = [table[-1:]] * beyond
            return stacked(dtype, table[: clara.text_vocab], *copies, *special)

        embedding = self.params["embed"]["embedding"]
        tables = {"embed": with_rows(embedding, adapters["memory"], rows["marks"])}
        if not self.config.tied:
            tables["head"] = with_rows(self.params["head"]["kernel"].T, rows["head"])
        return tables

    def settings(self, **changes: Any) -> ClaraSettings:
        """Return the settings as they are written, with what was frozen in training."""
        clara, _, _ = self.parts()
        frozen = clara.frozen or weights_sample(self.params, clara.text_vocab)
        return dataclasses.replace(clara, frozen=frozen, **changes)

    def base_name(self) -> str:
        """Return the name or path that the base model came from, or an empty text."""
        known = self.tokenizer.init_kwargs.get(NAME_KEY) or self.tokenizer.name_or_path
        return str(known or "")

    def needed_name(self, name: str) -> str:
        """Return `name` or else the base model's own; refuse one that has none."""
        if name := name or self.base_name():
            return name
        raise ClaraError(
            "the source does not say what its base model is called; give its hub name "
            "or path with --base-name"
        )


def write_model_folder(
    path: str | os.PathLike, model: ModelFolder, update: bool = False
) -> None:
    """Write a model to a new or empty folder, whole or not at all.

    The backbone's weights are left out when ``model.clara.backbone`` names another
    place. With `update` the parts go into an existing folder (a run's), each replaced
    by rename.

    Raises:
      ClaraError: the destination is not empty, or cannot be written.
    """
    path = Path(path).absolute()
    update = update and path.exists()
    with folder_beside(path) if update else new_folder(path) as whole:
        _write_parts(whole, model)
        if not update:
            return
        # model.json last: a folder without it is no model folder yet.
        for part in sorted(whole.iterdir(), key=lambda p: p.name == "model.json"):
            if part.is_dir():
                replace_folder(part, path / part.name)
            else:
                os.replace(part, path / part.name)


def check_destination(path: Path) -> None:
    """Refuse a destination that already holds something."""
    if path.is_dir() and any(path.iterdir()):
        raise ClaraError(f"{path}: is not empty; give a new folder or remove it first")
    if path.exists() and not path.is_dir():
        raise ClaraError(f"{path}: is a file; give a new folder")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to write to, which becomes `path` when all has gone well.

    Raises:
      ClaraError: `path` is not empty, or cannot be written.
    """
    path = Path(path).absolute()
    check_destination(path)
    with folder_beside(path) as whole:
        yield whole
        if path.exists():
            path.rmdir()
        os.rename(whole, path)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`, removed in the end; errors name `path`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        whole = temporary / "model"
        whole.mkdir()
        yield whole
    except (OSError, ClaraError) as error:
        # `write_json` has named the temporary folder; users know the destination.
        cause = error.__cause__ if isinstance(error, ClaraError) else error
        if isinstance(cause, OSError):
            raise write_error(path, cause) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_parts(folder: Path, model: ModelFolder) -> None:
    values = {"format": FORMAT, **to_dict(model.config), "eos_ids": model.eos_ids}
    write_json(folder / "model.json", values)
    write_tokenizer(folder / "tokenizer", model.tokenizer)
    try:
        if model.clara is None or model.clara.backbone == "backbone":
            write_tree(folder / "backbone", model.params)
        if model.clara is not None:
            write_json(folder / "clara.json", to_dict(model.settings()))
            rows = {"rows": model.rows} if model.rows else {}
            write_tree(folder / "adapters", {**(model.adapters or {}), **rows})
    except WRITE_ERRORS as error:
        remove_folder(folder)
        if isinstance(error, OSError):
            raise
        raise OSError(first_line(error)) from error


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files so that transformers 4 and 5 read them."""
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:  # what tokenizers raises when the disk is full
        raise OSError(first_line(error)) from error
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    for key in ("backend", "is_local", "local_files_only"):
        values.pop(key, None)
    write_json(path, values)


def read_tokenizer(folder: Path) -> Any:
    """Read a tokenizer's folder; see `load_tokenizer`."""
    refuse_pointer(folder / "tokenizer.json")
    return load_tokenizer(folder)


def read_model_config(folder: Path) -> tuple[ModelConfig, tuple[int, ...]]:
    """Return shape and end-of-answer ids from ``model.json``."""
    path = folder / "model.json"
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise ClaraError(f"{path}: is not of the form '{FORMAT}'")
    eos_ids = values.pop("eos_ids", [])
    if not isinstance(eos_ids, list) or any(type(i) is not int for i in eos_ids):
        raise ClaraError(f"{path}: field 'eos_ids' must be a list of token ids")
    return parse(ModelConfig, values, str(path)), tuple(eos_ids)


def read_clara_settings(folder: Path) -> ClaraSettings | None:
    """Return the settings in ``clara.json``; None where there is no such file."""
    path = folder / "clara.json"
    return parse(ClaraSettings, read_json(path), str(path)) if path.exists() else None


def check_base(
    path: Path, clara: ClaraSettings, params: Params, found: str = "the one found"
) -> None:
    """Refuse a base of other weights than adapters were trained on; note near ones.

    Args:
      path: where the `clara` settings are, for messages.
      params: the base's, of the right shape.
      found: what these are called in messages.
    """
    if not clara.frozen:
        return
    try:
        now = weights_sample(params, clara.text_vocab)
        distance = weights_distance(clara.frozen, now)
    except (ValueError, TypeError) as error:
        raise ClaraError(f"{path}: field 'frozen' is damaged; take it out") from error
    if distance > FAR:
        named = f" ({clara.backbone})" if clara.backbone != "backbone" else ""
        raise ClaraError(
            f"{path}: was trained on another base of this shape{named}, whose weights "
            f"are not those of {found}; give the right one with --base"
        )
    if distance:
        note(
            f"{path}: the base's weights differ by {distance:.1%} from those that the "
            "adapters were trained on, as they do in 4 bits or after more training; "
            "vectors and answers are not exactly the same"
        )


def read_model_folder(
    folder: Path,
    base: ModelFolder | None = None,
    param_dtype: str = "",
    placement: Placement | None = None,
) -> ModelFolder:
    """Read a model folder; `base` is the backbone when it is kept elsewhere.

    Raises:
      ClaraError: a part is missing or damaged, or parts do not fit each other.
    """
    config, eos_ids = read_model_config(folder)
    clara = read_clara_settings(folder)
    tokenizer = read_tokenizer(folder / "tokenizer")
    if clara is not None and clara.text_vocab != len(tokenizer):
        raise ClaraError(
            f"{folder / 'clara.json'}: field 'text_vocab' is {clara.text_vocab}, but "
            f"the tokenizer has {len(tokenizer)} tokens"
        )
    lora = None if clara is None else clara.lora
    shapes = abstract_variables(Transformer(config, len(tokenizer), lora=lora))
    if base is None:
        dtype: Any = param_dtype or config.param_dtype
        config = dataclasses.replace(config, param_dtype=dtype)
        like = jax.tree.map(lambda x: x.update(dtype=dtype), shapes["params"])
        params = load_tree(folder / "backbone", like, placement)
        found = str(folder / "backbone")
    else:
        for name in _SHAPE:
            here, there = getattr(config, name), getattr(base.config, name)
            if here != there:
                raise ClaraError(
                    f"{folder}: was trained on a base whose {name} is {here}, but the "
                    f"base found has {there}; give the right base"
                )
        config, params, found = base.config, base.params, "the one found"
    if clara is not None:
        check_base(folder / "clara.json", clara, params, found)
    model = ModelFolder(config, params, tokenizer, clara, eos_ids=eos_ids)
    if clara is not None:
        adapters = load_tree(folder / "adapters", None, placement)
        memory, width = clara.memory, config.width
        want = {"memory": (memory.num_memory, width), "rows": {"marks": (3, width)}}
        if not config.tied:
            want["rows"]["head"] = (memory.num_special, width)
        usual = jax.tree.map(np.shape, shapes.get("lora"))
        known = {*ROLES, *want}
        for name in sorted({*adapters} - known) + sorted({*want} - {*adapters}):
            what = "is not expected" if name in adapters else "is missing"
            raise ClaraError(
                f"{folder / 'adapters'}: {name} {what}; there must be memory, rows and "
                f"some of {', '.join(ROLES)}"
            )
        for name, tree in adapters.items():
            if jax.tree.map(np.shape, tree) != want.get(name, usual):
                raise ClaraError(
                    f"{folder / 'adapters'}: {name} is not of the shape that "
                    "model.json and clara.json describe; they belong to different "
                    "models"
                )
        model.rows = adapters.pop("rows", None)
        model.adapters = adapters
    return model
