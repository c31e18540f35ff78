"""Records by index, out of JSON files and TFDS folders; TFDS folders out of records."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from clara_jax.data.json_files import JsonFile
from clara_jax.data.records import FORMATS, Reader, Record, RecordSource, detect_format
from clara_jax.errors import ClaraError
from clara_jax.files import first_line, write_error


@runtime_checkable
class Rows(Protocol):
    """What a format is read from: raw objects by index, each with its place."""

    path: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, str]: ...


class Records:
    """Records of several files, one after the other, read when they are asked for.

    Args:
      parts: rows, and the reader for them.
      limit: keep only the first so many; 0 keeps all.

    Attributes:
      paths: the files and folders.
    """

    def __init__(self, parts: Sequence[tuple[Rows, Reader]], limit: int = 0):
        self.paths = [rows.path for rows, _ in parts]
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(len(rows) for rows, _ in parts))
        self._length = min(self._ends[-1], limit) if limit else self._ends[-1]

    def __len__(self) -> int:
        return self._length

    def first(self, count: int) -> Records:
        """Return the first `count` (1 or more) records; all if there are fewer."""
        return Records(self._parts, min(count, len(self)))

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int, /) -> Record:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        rows, reader = self._parts[part]
        return reader(*rows[index - (self._ends[part - 1] if part else 0)])


def open_records(
    paths: Sequence[str | Path] | str | Path, format: str = "auto", limit: int = 0
) -> Records:
    """Open files and TFDS folders of records.

    Args:
      paths: JSONL files, JSON files that are one array, or TFDS folders (with
        ``#split`` after the name where a folder has several; ``train`` by default).
      format: a key of `FORMATS`, or ``auto``, which looks at each file's first record.
      limit: use only the first so many records; 0 takes all.

    Returns:
      Records by number. Indexing raises ClaraError with file and line where a
      record is not as its format says.

    Raises:
      ClaraError: a path that does not exist or holds no records, an unknown format.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    if format != "auto" and format not in FORMATS:
        raise ClaraError(
            f"data.format is '{format}', but must be one of auto, {', '.join(FORMATS)}"
        )
    if not paths:
        raise ClaraError("data: no files of records are named")
    parts: list[tuple[Rows, Reader]] = []
    for path in map(str, paths):
        folder, _, split = path.partition("#")
        if Path(folder).is_dir():
            rows: Rows = TfdsRows(folder, split)
        elif Path(path).exists():
            rows = JsonFile(path)
        else:
            raise ClaraError(f"{path}: no such file or folder")
        name = detect_format(*rows[0]) if format == "auto" else format
        parts.append((rows, FORMATS[name]))
    return Records(parts, limit)


class TfdsRows:
    """Rows of a TFDS folder with ArrayRecord files, read without TensorFlow.

    Args:
      folder: the folder with ``dataset_info.json``, or one that has it one or two
        levels below (``NAME/VERSION``).
      split: empty takes ``train``, or the only one there is.
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


def write_tfds(records: Mapping[str, RecordSource], folder: str | Path) -> Path:
    """Write records as a TFDS folder of ArrayRecord files.

    Args:
      records: split name to records.
      folder: where to; must not exist, and appears only when it is complete.

    Returns:
      The folder, which `open_records` reads.

    Raises:
      ClaraError: the folder exists, a record is bad, or the disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise ClaraError(f"{folder}: exists already; name a new folder")
    for name in records:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name == "all":
            raise ClaraError(f"'{name}' is no name for a split; try train or eval")
    tfds = _import_tfds()
    total = sum(map(len, records.values()))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}.", dir=folder.parent
            ) as scratch,
            tqdm(desc="write", total=total, unit="rec", delay=2) as bar,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder = _builder(tfds, scratch, records, bar)
            builder.download_and_prepare()
            Path(builder.data_dir).replace(folder)
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        raise write_error(folder, error) from error
    return folder


def _builder(
    tfds: Any, folder: str, records: Mapping[str, RecordSource], bar: tqdm
) -> Any:
    """A builder of our own: that of ``store_as_tfds_dataset`` needs TensorFlow."""
    texts = tfds.features.Sequence(tfds.features.Text())
    features = {
        "docs": texts,
        "question": texts,
        "answers": texts,
        "data_type": tfds.features.Text(),
        "pos_index": tfds.features.Sequence(np.int32),
        "gold_answer": texts,
    }

    class ClaraRecords(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES = {"1.0.0": "Documents, questions, answers, positives."}  # noqa: RUF012

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                description="Documents with questions about them, for CLaRa.",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {
                name: self._generate_examples(source)
                for name, source in records.items()
            }

        def _generate_examples(
            self, source: RecordSource
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(len(source)):
                bar.update(1)
                record = source[i]
                values = (
                    *(record.documents, record.questions, record.answers),
                    *(record.kind, record.positives, record.gold),
                )
                yield i, dict(zip(features, values, strict=True))

    return ClaraRecords(data_dir=folder, file_format="array_record")


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
