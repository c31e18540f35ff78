"""The Hugging Face hub: files listed and fetched, and one-line errors.

What the hub's cache has serves when the hub cannot be reached.
"""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from clara_jax.convert.forms import FILES, PATTERNS, Form, inner_folder_of, is_gguf
from clara_jax.errors import ClaraError

_LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"
_ELSEWHERE = "check the network, or download it elsewhere and give the folder"

_OWNERS = {
    "mistral-": "mistralai",
    "phi-": "microsoft",
    "qwen": "Qwen",
    "llama-": "meta-llama",
    "meta-llama-": "meta-llama",
    "smollm": "HuggingFaceTB",
    "gemma-": "google",
}
"""How the names of well-known models begin, and whose they are on the hub."""

_CALLED = {"phi-4-mini": "Phi-4-mini-instruct"}
"""Short names of models, and those that they have on the hub."""


class MissingModelError(ClaraError):
    """A model is neither here nor to be had from the hub.

    Attributes:
      what: the message without its remedy.
    """

    def __init__(self, what: str, remedy: str = ""):
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what


def hub_files(name: str, remedy: str = "") -> list[str]:
    """Return the paths of a repository's files, sorted.

    Args:
      name: such as ``apple/CLaRa-7B-E2E``.
      remedy: what to do if it is not to be had, in place of general advice.

    Raises:
      MissingModelError: the hub does not give it.
    """
    try:
        # Not `list_repo_files`, which tries for half a minute where there is no net.
        info = huggingface_hub.HfApi().model_info(name)
        return sorted(file.rfilename for file in info.siblings or ())
    except Exception as error:
        try:
            # No patterns: where the cache has what it has of the repository.
            folder = huggingface_hub.snapshot_download(
                name, allow_patterns=[], local_files_only=True
            )
        except Exception:
            raise _missing(name, error, remedy) from error
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in files)


def fetch(name: str, patterns: Sequence[str], remedy: str = "") -> Path:
    """Return the folder of a repository, with its files of these patterns.

    Raises:
      MissingModelError: the hub does not give them.
    """
    try:
        found = huggingface_hub.snapshot_download(name, allow_patterns=list(patterns))
        return Path(found)
    except Exception as error:
        raise _missing(name, error, remedy) from error


def _missing(name: str, error: Exception, remedy: str) -> MissingModelError:
    """Say in one line why the hub does not give a model, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        why = "gives it only to those who may have it"
        remedy = f"ask for access at https://huggingface.co/{name}, then {_LOG_IN}"
    elif isinstance(error, errors.HFValidationError):
        why = "has no names like this"
        remedy = remedy or "give a folder, or a hub name such as OWNER/MODEL"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "has no model of this name that you may see"
        remedy = remedy or f"check the spelling; if it is private, {_LOG_IN}"
    elif status == 401:
        why, remedy = "does not know your token", _LOG_IN
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "gave more than the disk holds"
        remedy = "free space, or name a larger place in HF_HOME"
    else:
        why = f"cannot be reached ({type(error).__name__})"
        if isinstance(error, errors.OfflineModeIsEnabled):
            why = "is switched off (HF_HUB_OFFLINE)"
            remedy = remedy or _ELSEWHERE.replace("check the network", "unset this")
        elif status is not None:
            why = f"answers with status {status}"
        remedy = remedy or _ELSEWHERE
    text = f"{name}: no such folder, and the Hugging Face hub {why}"
    return MissingModelError(text, remedy)


def fetch_model(name: str, rate: int = 0, remedy: str = "") -> Path:
    """Return the folder of a model of the hub, of whatever form; see `hub_files`.

    Of several checkpoints of the original only that of the `rate` is fetched.
    """
    files = hub_files(name, remedy)
    gguf = [file for file in files if is_gguf(Path(file))]
    forms: list[Form] = [form for form in FILES if {*FILES[form]} <= {*files}]
    form, folder = forms[0] if forms else "hf", ""
    if form == "hf" and (folder := inner_folder_of(name, files, rate)):
        form = "apple"
    elif form == "hf" and gguf and "config.json" not in files:
        raise ClaraError(
            f"{name}: has only .gguf files; download one, such as with 'hf download "
            f"{name} {gguf[0]}', and give its path"
        )
    start = f"{folder}/" if folder else ""
    return fetch(name, [start + file for file in PATTERNS[form]], remedy) / folder


def hub_name(path: str) -> str:
    """Guess the hub name of a well-known model from somebody's path to it."""
    *before, last = parts = [p for p in re.split(r"[\\/]", path) if p] or [""]
    if len(before) == 1 and path == f"{before[0]}/{last}":
        return ""  # is one
    for part in reversed(parts):
        if part.startswith("models--"):  # the hub's cache
            return part.removeprefix("models--").replace("--", "/", 1)
    for part in reversed(parts):
        name = _CALLED.get(part.lower(), part)
        owners = (o for start, o in _OWNERS.items() if name.lower().startswith(start))
        # Every model's name has a number, unlike those of folders around it.
        if any(map(str.isdigit, name)) and (owner := next(owners, "")):
            return f"{owner}/{name}"
    return ""
