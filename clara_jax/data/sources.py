"""Records by index, out of JSON files and TFDS folders; TFDS folders out of records."""

import bisect
import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clara_jax.data.records import FORMATS, Reader, Record, RecordSource, detect_format
from clara_jax.data.row_files import RowFile, open_rows
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error


class Records:
    """Records of several files, one after the other, read when they are asked for.

    Attributes:
      paths: the files and folders.
      formats: of each of them, keys of `FORMATS`.
    """

    def __init__(
        self,
        parts: Sequence[tuple["RowFile | TfdsRows", Reader]],
        limit: int = 0,
        formats: Sequence[str] = (),
    ):
        self.formats = tuple(formats)
        self.paths = [rows.path for rows, _ in parts]
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


def locate(ends: Sequence[int] | np.ndarray, index: int) -> tuple[int, int]:
    """Return the part that holds an item, and the place in it, by where parts end."""
    part = bisect.bisect_right(ends, index)
    return part, index - (int(ends[part - 1]) if part else 0)


def open_records(
    paths: Sequence[str | Path] | str | Path, format: str = "auto", limit: int = 0
) -> Records:
    """Open files and TFDS folders of records.

    Args:
      paths: JSONL files, JSON files that are one array, or TFDS folders (``#split``
        after the name where a folder has several; ``train`` by default).
      format: a key of `FORMATS`, or ``auto``, which looks at each file's first record.
      limit: use only the first so many records; 0 takes all.

    Raises:
      ClaraError: a path that does not exist or holds no records, an unknown format. On
        indexing: a record that is not as its format says, with file and line.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if format != "auto" and format not in FORMATS:
        raise ClaraError(
            f"data.format is '{format}', but must be one of auto, {', '.join(FORMATS)}"
        )
    if not paths:
        raise ClaraError("data: no files of records are named")
    parts: list[tuple[RowFile | TfdsRows, Reader]] = []
    formats = []
    for path in map(str, paths):
        folder, _, split = path.partition("#")
        if Path(folder).is_dir():
            rows = TfdsRows(folder, split)
        elif Path(path).exists():
            rows = open_rows(path)
        else:
            raise ClaraError(f"{path}: no such file or folder")
        name = detect_format(*rows[0]) if format == "auto" else format
        parts.append((rows, FORMATS[name]))
        formats.append(name)
    return Records(parts, limit, formats)


class TfdsRows:
    """Objects of a TFDS folder with ArrayRecord files, read without TensorFlow.

    ``dataset_info.json`` is in the folder, or one or two levels below
    (``NAME/VERSION``). An empty split is ``train``, or the only one there is.
    """

    def __init__(self, folder: str, split: str = ""):
        found = [
            path.parent
            for pattern in ("", "*/", "*/*/")
            for path in sorted(Path(folder).glob(f"{pattern}dataset_info.json"))
        ]
        if len(found) != 1:
            what = "several TFDS data sets" if found else "no TFDS data set"
            raise ClaraError(f"{folder}: is a folder with {what}; name one")
        try:
            builder = _import_tfds().builder_from_directory(str(found[0]))
            splits = list(builder.info.splits)
            split = split or (splits[0] if len(splits) == 1 else "train")
            if split not in splits:
                raise ClaraError(
                    f"{folder}: has no split '{split}', only {', '.join(splits)}"
                )
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

    def __getitem__(self, index: int) -> tuple[Any, str]:
        return _plain(self._source[index]), f"{self.path}: record {index + 1}"


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
    tfds = _import_tfds()
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
                for i in range(len(source)):
                    record = source[i]
                    example = {name: getattr(record, own) for name, own in _OWN.items()}
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


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ClaraError(
            "TFDS folders need the packages tensorflow-datasets, array-record and "
            f"importlib_resources ({error})"
        ) from error
    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets
