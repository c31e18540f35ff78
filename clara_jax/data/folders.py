"""Data sets that are folders: TFDS, saved by the datasets library, files by split."""

import bisect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from clara_jax.data.plain_files import plain_ending
from clara_jax.data.row_files import ROW_SUFFIXES, open_rows
from clara_jax.errors import ClaraError
from clara_jax.files import first_line


@runtime_checkable
class Rows(Protocol):
    """Objects by number, each with where it stands, as a `RowFile` has them."""

    path: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, str]: ...


def open_folder(folder: str, split: str = "", encoding: str = "") -> list[Rows]:
    """Open a split of a data set in a folder.

    Args:
      folder: of TFDS; written by ``save_to_disk`` of the datasets library; or with a
        file, or several, for each split, such as ``data/train-00000-of-00002.parquet``.
      split: empty is ``train``, or the only one there is.
      encoding: of text files, see `open_rows`.

    Raises:
      ClaraError: the folder holds none of these, or not this split.
    """
    place = Path(folder)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return [SavedRows(folder, split)]
    if tfds := tfds_folders(folder):
        return [TfdsRows(folder, tfds, split)]
    splits = _files_by_split(place)
    if not splits:
        raise ClaraError(
            f"{folder}: is a folder without a data set: neither of TFDS, nor saved by "
            "the datasets library, nor with files of records; name one"
        )
    name = _split_by_word(folder, list(splits), split)
    first, *others = splits[name]
    if others:  # configs of one data set
        raise ClaraError(
            f"{folder}: has split '{name}' in several folders, {first} and "
            f"{others[0]}; name one of them"
        )
    return [open_rows(path, encoding) for path in splits[name][first]]


def place_and_split(path: str | Path) -> tuple[str, str]:
    """Return the file or folder of ``FOLDER#SPLIT``, and the split, empty if none."""
    if Path(path).exists():  # whose own name may hold the sign
        return str(path), ""
    place, _, split = str(path).partition("#")
    return place, split


def chosen_split(folder: str, names: Sequence[str], split: str) -> str:
    """Return the split asked for; an empty one is ``train``, or the only one."""
    name = split or (names[0] if len(names) == 1 else "train")
    if name in names:
        return name
    raise ClaraError(
        f"{folder}: has no split '{name}', only {', '.join(names)}; name one as "
        f"{folder}#{names[0]}"
    )


def _split_by_word(folder: str, names: Sequence[str], split: str) -> str:
    """Return the `chosen_split`, or the only one with it as a word of its name.

    So ``hotpot_train_v1.1.json`` is ``train``, as long as no other file is.
    """
    word = split or "train"
    if len(names) > 1 and word not in names:
        alike = [name for name in names if word in re.split("[-_.]", name)]
        if len(alike) > 1:
            raise ClaraError(
                f"{folder}: has several splits '{word}', {', '.join(alike)}; name one "
                f"as {folder}#{alike[0]}"
            )
        split = alike[0] if alike else split
    return chosen_split(folder, names, split)


def _files_by_split(folder: Path) -> dict[str, dict[Path, list[Path]]]:
    """Return files of records below a folder, by what their names begin with.

    Those of a split by the folder that they are in.
    """
    found: list[tuple[Path, str]] = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        if hidden or plain_ending(path) not in ROW_SUFFIXES or not path.is_file():
            continue
        name = path.name[: path.name.lower().rindex(plain_ending(path))]
        if name not in _ABOUT:
            found.append((path, name))
    # Numbers that do not count from 0 or 1 on are not of shards: years, for example.
    starts = {
        (path.parent, match[1])
        for path, name in found
        if (match := _SHARD.fullmatch(name)) and int(match[2]) < 2
    }
    splits: dict[str, dict[Path, list[Path]]] = {}
    for path, name in found:
        split, base = name, path.parent
        match = _SHARD.fullmatch(name)
        if match and (match[3] or (base, match[1]) in starts):
            split = match[1]
        elif name.isdecimal() and base != folder:  # train/0000.parquet
            split, base = base.name, base.parent
        splits.setdefault(split, {}).setdefault(base, []).append(path)
    return splits


_SHARD = re.compile(r"(.+?)(?:[-_]|(?<!\d)\.)(\d+)([-_]of[-_]\d+)?(?:-\w{12,})?")
"""Split, number and count in the name of a shard; that of a version, 1.0, is none."""

_ABOUT = ("dataset_info", "dataset_infos", "dataset_dict", "state", "features")
"""JSON files that say something about a data set."""


def locate(ends: Sequence[int] | np.ndarray, index: int) -> tuple[int, int]:
    """Return the part that holds an item, and the place in it, by where parts end."""
    part = bisect.bisect_right(ends, index)
    return part, index - (int(ends[part - 1]) if part else 0)


class SavedRows:
    """Objects of a folder that ``save_to_disk`` of the datasets library has written.

    They are read where they are, without that library.
    """

    def __init__(self, folder: str, split: str = ""):
        place, self.path = Path(folder), folder
        try:
            if (place / "dataset_dict.json").is_file():
                splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
                name = chosen_split(folder, splits, split)
                place, self.path = place / name, f"{folder}#{name}"
            state = json.loads((place / "state.json").read_text())
            own = state.get("_split") or split
            if split and own != split:
                chosen_split(folder, [own], split)
            files = [place / file["filename"] for file in state["_data_files"]]
            self._batches = [
                batch
                for file in files
                for batch in pa.ipc.open_stream(pa.memory_map(str(file)))
            ]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ClaraError(
                f"{folder}: cannot be read as a data set of the datasets library "
                f"({first_line(error)})"
            ) from error
        self._ends = list(itertools.accumulate(map(len, self._batches)))
        if not self._ends or not self._ends[-1]:
            raise ClaraError(f"{self.path}: holds no records")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> tuple[Any, str]:
        part, place = locate(self._ends, index)
        (value,) = self._batches[part].slice(place, 1).to_pylist()
        return value, f"{self.path}: record {index + 1}"


def tfds_folders(folder: str) -> list[Path]:
    """Return the folders with a TFDS data set, at most two levels below this one."""
    return [
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in sorted(Path(folder).glob(f"{pattern}dataset_info.json"))
        if not (path.parent / "state.json").exists()
    ]


class TfdsRows:
    """Objects of a TFDS folder with ArrayRecord files, read without TensorFlow.

    ``dataset_info.json`` is in the folder, or one or two levels below
    (``NAME/VERSION``), which `found` lists. An empty split is ``train``, or the only
    one there is.
    """

    def __init__(self, folder: str, found: Sequence[Path], split: str = ""):
        if len(found) != 1:
            raise ClaraError(
                f"{folder}: is a folder with several TFDS data sets; name one"
            )
        try:
            builder = import_tfds().builder_from_directory(str(found[0]))
            split = chosen_split(folder, list(builder.info.splits), split)
            self._source = builder.as_data_source(split=split)
        except ClaraError:
            raise
        except Exception as error:
            line = first_line(error)
            raise ClaraError(f"{folder}: cannot be read by TFDS: {line}") from error
        self.path = f"{folder}#{split}"
        if not len(self._source):
            raise ClaraError(f"{self.path}: holds no records")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> tuple[Any, str]:
        place = f"{self.path}: record {index + 1}"
        try:
            return _plain(self._source[index]), place
        except UnicodeDecodeError as error:
            raise ClaraError(f"{place}: is not UTF-8 (byte {error.start})") from error


def _plain(value: Any) -> Any:
    """TFDS values as JSON would give them; empty lists, which stand for absence, go."""
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item != []}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def import_tfds() -> Any:
    """Return the module tensorflow_datasets, or refuse."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ClaraError(
            "TFDS folders need the packages tensorflow-datasets, array-record and "
            f"importlib_resources ({error})"
        ) from error
    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets
