"""The forms of a model's folder, here or on the hub, and several rates in one folder.

Checkpoints of the original for several compression rates lie side by side, each in a
folder of its own such as ``compression-16/``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from clara_jax.convert.apple import ADAPTERS, LAYERS, apple_rate
from clara_jax.convert.model_folder import read_clara_settings
from clara_jax.convert.peft import FILES as PEFT_FILES
from clara_jax.errors import ClaraError

Form = Literal["model", "hf", "gguf", "apple", "peft"]
"""A model folder, a base model of Hugging Face or llama.cpp, or CLaRa adapters."""

FILES: dict[Form, tuple[str, ...]] = {
    "apple": (ADAPTERS,),
    "peft": PEFT_FILES,
    "model": ("model.json",),
}
"""Files by which a folder of these forms is known."""

PATTERNS: dict[Form, list[str]] = {
    "apple": ["config.json", ADAPTERS, LAYERS],
    "peft": [*PEFT_FILES, "*/adapter_*"],
    "model": ["model.json", "clara.json", "tokenizer/*", "backbone/*", "adapters/*"],
    "hf": ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"],
}
"""What is fetched from the hub of a model of each form."""


class SeveralModelsError(ClaraError):
    """A folder or repository holds several checkpoints of the original."""


_RATE = re.compile(r"compression-(\d+)")


def form_of(folder: Path) -> Form | None:
    """Return the form of a folder; None for a base model, or none at all."""
    for form, names in FILES.items():
        if all((folder / name).is_file() for name in names):
            return form
    return None


def is_gguf(path: Path) -> bool:
    """Return whether this is a file of llama.cpp, by its name."""
    return path.suffix.lower() == ".gguf"


def inner_folder(place: Path, rate: int) -> str:
    """Return which folder in a folder holds the checkpoint of a rate, as `chosen`."""
    if form_of(place) is not None or is_base(path.name for path in place.glob("*.*")):
        return ""
    folders = (path.parent for path in place.glob(f"*/{ADAPTERS}"))
    return chosen(str(place), {f.name: _rate_of(f) for f in folders}, rate)


def _rate_of(folder: Path) -> int:
    """Return the rate of a checkpoint; of a damaged one, that in its name."""
    try:
        return apple_rate(folder)
    except ClaraError:
        return named_rate(folder.name)


def inner_folder_of(name: str, files: Sequence[str], rate: int) -> str:
    """Return the same of a repository with these files, by the names of folders."""
    inner = [file.rpartition("/") for file in files]
    folders = [folder for folder, _, last in inner if last == ADAPTERS]
    if is_base(files):
        return ""
    return chosen(name, {folder: named_rate(folder) for folder in folders}, rate)


def named_rate(folder: str) -> int:
    """Return the rate in the name of a folder such as ``compression-16``, else 0."""
    found = _RATE.fullmatch(folder)
    return int(found[1]) if found else 0


def is_base(files: Iterable[str]) -> bool:
    """Return whether a base model's weights are among the files of a folder."""
    return any(file.startswith("model") and "safetensors" in file for file in files)


def chosen(where: str, rates: Mapping[str, int], rate: int) -> str:
    """Choose the folder of a `rate`, or the only one; empty where there is none.

    Args:
      where: what holds the folders, for errors.
      rates: folders, and their rates; 0 is unknown.
      rate: the one that is asked for; 0 for none.
    """
    if not rates or (len(rates) == 1 and not rate):
        return next(iter(rates), "")
    rates = dict(sorted(rates.items(), key=lambda item: (item[1], item[0])))
    found = [folder for folder, its in rates.items() if its == rate != 0]
    if len(found) == 1:
        return found[0]
    known = [its for its in rates.values() if its]
    if len(found) > 1 or len({*known}) < len(rates):
        raise SeveralModelsError(
            f"{where}: holds several checkpoints: {', '.join(rates)}; give the folder "
            "of one of them"
        )
    names, first = ", ".join(map(str, known)), known[0]
    what = "models of several compression rates"
    what = f"no model of rate {rate}, but of" if rate else f"{what}:"
    raise SeveralModelsError(
        f"{where}: holds {what} {names}; choose one, such as --rate {first}"
    )


def check_rate(form: Form, place: Path, rate: int) -> None:
    """Refuse a model of another compression rate."""
    clara = None if form in ("hf", "apple", "gguf") else read_clara_settings(place)
    if form == "apple":
        has = apple_rate(place)
    elif clara is None:
        raise ClaraError(f"{place}: is a base model, without a rate; leave --rate out")
    else:
        has = clara.memory.compression_rate
    if has != rate:
        raise ClaraError(f"{place}: has rate {has}, not {rate}; leave --rate out")
