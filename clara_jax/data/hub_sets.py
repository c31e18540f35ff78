"""Data sets of the Hugging Face hub by name, through the datasets library."""

import logging
from pathlib import Path
from typing import Any

from clara_jax.data.folders import chosen_split
from clara_jax.errors import ClaraError
from clara_jax.files import first_line

HUB = "hf:"
"""How the name of a data set of the hub begins."""


def is_hub(path: str | Path) -> bool:
    """Return whether a path is the name of a data set of the hub."""
    return str(path).startswith(HUB)


class HubRows:
    """Objects of a data set of the hub: ``hf:OWNER/NAME``, ``hf:NAME:CONFIG#SPLIT``.

    It is downloaded once, to the cache of the datasets library. An empty split is
    ``train``, or the only one there is.

    Attributes:
      path: its name, with the split.
      files: where it lies in the cache.

    Raises:
      ClaraError: the library is not installed; there is no such data set, config or
        split; it is gated; or the hub cannot be reached.
    """

    def __init__(self, path: str):
        name, _, split = path.removeprefix(HUB).partition("#")
        name, _, config = name.partition(":")
        try:
            import datasets
        except ImportError as error:
            raise ClaraError(
                f"{path}: needs the package datasets: pip install 'clara_jax[datasets]'"
            ) from error
        if not name:
            raise ClaraError(f"'{path}' names no data set; write {HUB}OWNER/NAME")
        hub = logging.getLogger("huggingface_hub")
        before = hub.level
        hub.setLevel(logging.ERROR)  # what it tries again is not worth a line each
        try:
            if not split:
                names = datasets.get_dataset_split_names(name, config or None)
                split = chosen_split(path, names, "")
            self._rows = datasets.load_dataset(name, config or None, split=split)
        except ClaraError:
            raise
        except Exception as error:  # of whichever library the download goes through
            raise ClaraError(f"{path}: {_reason(error)}") from error
        finally:
            hub.setLevel(before)
        self.path = f"{path.partition('#')[0]}#{split}"
        self.files = [Path(file["filename"]) for file in self._rows.cache_files]
        if not len(self._rows):
            raise ClaraError(f"{self.path}: holds no records")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> tuple[Any, str]:
        return self._rows[index], f"{self.path}: record {index + 1}"


def _reason(error: Exception) -> str:
    """What went wrong, and what to do, in one line."""
    line = first_line(error)
    kind = {base.__name__ for base in type(error).__mro__}
    if "gated" in line:
        return f"is gated: accept its terms on the hub, then `hf auth login` ({line})"
    if "DatasetNotFoundError" in kind:
        return f"is not on the hub; mind its spelling, OWNER/NAME ({line})"
    if "ConnectionError" in kind or "OfflineModeIsEnabled" in kind:
        return (
            f"the hub cannot be reached, and its cache does not hold it ({line}); "
            "download it elsewhere, and name the folder"
        )
    if "scripts are no longer supported" in line:
        return f"is a program, which the datasets library no longer runs ({line})"
    return f"cannot be loaded ({line}); its name is {HUB}NAME:CONFIG#SPLIT"
