"""Records by index, out of files, folders and the hub; TFDS folders out of records."""

import contextlib
import io
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax.commands import note
from clara_jax.data.fields import has_field, rename
from clara_jax.data.folders import (
    Rows,
    import_tfds,
    locate,
    open_folder,
    place_and_split,
)
from clara_jax.data.formats import FORMATS, check_fields, detect_format, reader_of
from clara_jax.data.hub_sets import HubRows, is_hub
from clara_jax.data.plain_files import plain_ending
from clara_jax.data.records import Reader, Record, RecordSource, each
from clara_jax.data.row_files import ROW_SUFFIXES, NoRowsError, RowFile, open_rows
from clara_jax.data.unfolding import unfold
from clara_jax.errors import ClaraError
from clara_jax.files import write_error


class Records:
    """Records of several files, one after the other, read when they are asked for.

    Attributes:
      paths: the files and folders.
      formats: of each of them, keys of `FORMATS`.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Rows, Reader]],
        limit: int = 0,
        formats: Sequence[str] = (),
    ):
        self.formats = tuple(formats)
        self.paths = list(dict.fromkeys(rows.path for rows, _ in parts))
        self._parts = parts
        self._ends = list(itertools.accumulate(len(rows) for rows, _ in parts))
        self._length = min(self._ends[-1], limit or self._ends[-1])

    def __len__(self) -> int:
        return self._length

    def first(self, count: int) -> "Records":
        """Return the first `count` (1 or more) records; all if there are fewer."""
        return Records(self._parts, min(count, len(self)), self.formats)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int, /) -> Record:
        part, place = locate(self._ends, range(len(self))[index])
        rows, reader = self._parts[part]
        return reader(*rows[place])


def open_records(
    paths: Sequence[str | Path] | str | Path,
    format: str = "auto",
    limit: int = 0,
    *,
    fields: Sequence[str] = (),
    encoding: str = "",
) -> Records:
    """Open files, folders and data sets of the hub that hold records.

    Args:
      paths: files as `open_rows` takes them; folders as `open_folder` takes them, with
        ``#split`` after the name where one has several; ``hf:NAME:CONFIG#SPLIT``.
      format: a key of `FORMATS`, or ``auto``, which looks at each file's first record.
      limit: use only the first so many records; 0 takes all.
      fields: ``OURS=THEIRS``, what fields of our format are called in the files, with
        dots between names of nested ones.
      encoding: of text files; empty finds it.

    Raises:
      ClaraError: a path that does not exist or holds no records, an unknown format, a
        field that no record has. On indexing: a record that is not as its format says,
        with file and line.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if format != "auto" and format not in FORMATS:
        raise ClaraError(
            f"data.format is '{format}', but must be one of auto, {', '.join(FORMATS)}"
        )
    names = check_fields(fields)
    if not paths:
        raise ClaraError("data: no files of records are named")
    parts: list[tuple[Rows, Reader]] = []
    formats: list[str] = []
    renamed: list[_Renamed] = []
    for path in map(str, paths):
        for rows in _open(path, encoding):
            if names:
                rows = _Renamed(rows, names)
                renamed.append(rows)
            name = detect_format(*rows[0]) if format == "auto" else format
            parts.append((rows, reader_of(name, rows)))
            formats.append(name)
    if unused := set(names).intersection(*(rows.unused for rows in renamed)):
        raise renamed[0].lacks(min(unused))
    return Records(parts, limit, formats)


def _open(path: str, encoding: str) -> Sequence[Rows]:
    """Open the objects of one path."""
    if is_hub(path):
        return [HubRows(path)]
    folder, split = place_and_split(path)
    if Path(path).is_file():
        return [_unfolded(_open_file(path, encoding), encoding)]
    if not Path(folder).is_dir():
        raise ClaraError(
            f"{path}: no such file or folder; a data set of the hub is named "
            "hf:OWNER/NAME"
        )
    found = open_folder(folder, split, encoding)
    return [_unfolded(rows, encoding) for rows in found]


def _open_file(path: str, encoding: str) -> RowFile:
    """Open a file of objects, or say what else would be one."""
    try:
        rows = open_rows(path, encoding)
        if plain_ending(path) not in ROW_SUFFIXES:
            rows[0]
        return rows
    except NoRowsError:
        raise
    except ClaraError as error:
        if plain_ending(path) in ROW_SUFFIXES:
            raise
        raise ClaraError(
            f"{path}: holds no records that can be read; save them as a file that ends "
            f"in {', '.join(ROW_SUFFIXES)}"
        ) from error


def _unfolded(rows: Rows, named: str) -> Rows:
    """Return what `unfold` does; print a note of an encoding that was guessed."""
    taken = getattr(rows, "encoding", "utf-8")
    if not named and not taken.startswith("utf-"):
        note(
            f"{rows.path}: read as {taken}, since not UTF-8; if this is wrong, name it "
            "with --encoding"
        )
    return unfold(rows)


class _Renamed:
    """Objects with their fields called as in our format; see `rename`.

    Attributes:
      unused: those of `names` that no object has; each has our own in its place.
    """

    def __init__(self, rows: Rows, names: Mapping[str, str]):
        self.path, self._rows, self._names = rows.path, rows, names
        self.unused, own = set(names), set()
        for i in range(len(rows)):
            if not self.unused:
                return
            value, _ = rows[i]
            self.unused -= {k for k in self.unused if has_field(value, names[k])}
            own |= {k for k in self.unused if has_field(value, k)}
        if lost := self.unused - own:
            raise self.lacks(min(lost))

    def lacks(self, name: str) -> ClaraError:
        """Return the error of a field that no object has."""
        value, _ = self._rows[0]
        seen = ", ".join(map(str, value)) if isinstance(value, Mapping) else "none"
        return ClaraError(
            f"{self.path}: no record has the field '{self._names[name]}', which "
            f"data.fields (--fields) names; there are {seen}"
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> tuple[Any, str]:
        value, place = self._rows[index]
        return rename(value, self._names), place


_OWN = {
    "docs": "documents",
    "question": "questions",
    "answers": "answers",
    "data_type": "kind",
    "pos_index": "positives",
    "gold_answer": "gold",
    "missing": "missing",
    "answerable": "answerable",
    "id": "id",
}
"""Features of a TFDS folder, and the fields of a `Record` that they hold."""


def write_tfds(records: Mapping[str, RecordSource], folder: str | Path) -> Path:
    """Write the records of each split as a TFDS folder, and return it.

    It must not exist, and appears only when it is complete.

    Raises:
      ClaraError: the folder exists, a record is bad, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise ClaraError(f"{folder}: exists already; name a new folder")
    for name in records:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "all":
            raise ClaraError(f"'{name}' is not a name for a split; try train or eval")
    tfds = import_tfds()
    total = sum(map(len, records.values()))
    bar = tqdm(desc="write", total=total, unit="rec", delay=2)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent
        )
        with scratch, bar, contextlib.redirect_stdout(io.StringIO()):
            data = Path(scratch.name, "data")  # takes the folder's usual permissions
            data.mkdir()
            writer = _writer(tfds, data)
            writer.initialize_splits(list(records))
            for split, source in records.items():
                for record in each(source):
                    example = {name: getattr(record, own) for name, own in _OWN.items()}
                    if record.accepted:
                        example["answers"] = [json.dumps(record.accepted)]
                    writer.add_examples({split: [example]})
                    bar.update(1)
            writer.close_all()
            data.replace(folder)
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        raise write_error(folder, error) from error
    return folder


def _writer(tfds: Any, folder: Path) -> Any:
    features = tfds.features
    kinds = {
        "data_type": features.Text(),
        "pos_index": features.Sequence(np.int32),
        "missing": np.int32,
        "answerable": np.bool_,
        "id": features.Text(),
    }
    texts = features.Sequence(features.Text())
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="clara_records",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(folder),
        module_name=__name__,
        release_notes={"1.0.0": "Documents, questions, answers, positives."},
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features.FeaturesDict({name: kinds.get(name, texts) for name in _OWN}),
        description="Documents with questions about them, for CLaRa.",
        disable_shuffling=True,
    )
    return tfds.core.SequentialWriter(info, 100_000, file_format="array_record")
