"""The objects of a file by number: JSON, Parquet, CSV and TSV, compressed or not.

Objects are read when they are asked for. What is not JSON in UTF-8 already is written
as such, once, to a temporary file without a name.
"""

import array
import datetime
import decimal
import itertools
import json
import mmap
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from clara_jax.data.encodings import find_encoding, require_encoding
from clara_jax.data.plain_files import open_plain, plain_ending, scratch
from clara_jax.data.text_tables import (
    Row,
    decoded_lines,
    distinct_names,
    read_table,
)
from clara_jax.errors import ClaraError, RecordError
from clara_jax.files import first_line

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
"""Endings of files that hold objects."""

_BOM = b"\xef\xbb\xbf"
# Strings are skipped whole, so that brackets within them do not count.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_BRACKETS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_SPACE, _COMMA = re.compile(rb"\s*"), re.compile(rb"\s*,\s*")
_LARGE = 1 << 27
"""Bytes above which a file is not looked at as one object."""


class NoRowsError(ClaraError):
    """A file of objects that holds none."""


class RowFile:
    """The objects of a file, each with where it stands.

    That is ``file:line`` in JSONL (blank lines are skipped, but counted) and tables of
    text, ``file: record N`` in a JSON array or Parquet, where N counts from 1. A file
    that is one JSON object over several lines is one record. Only places are kept (24
    bytes each); an object is read when it is asked for, by any number of threads at
    once.

    Args:
      path: what the file is called.
      file: what to read in its place, JSON lines or an array in UTF-8.

    Attributes:
      names: of the columns of a table, of which rows have those that are filled.
      encoding: that it was read in.

    Raises:
      ClaraError: the file cannot be read, holds nothing, or is an array that ends
        early; on indexing, an object that is not JSON, or a row of a table that is not
        like the others.
    """

    def __init__(self, path: str | Path, file: IO[bytes] | None = None):
        self.path = str(path)
        self.names: tuple[str, ...] = ()
        self.encoding = "utf-8"
        self._faults: dict[int, str] = {}
        places = array.array("q")
        try:
            if file is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            else:
                self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            head = os.pread(self._descriptor, 4096, 0).removeprefix(_BOM).lstrip()
            array_begins = head.startswith(b"[")
            one = head.startswith(b"{") and self._is_one_object()
            self._is_array = array_begins or one
            if one:
                places.extend((0, os.fstat(self._descriptor).st_size, 1))
            else:
                scan = self._scan_array if array_begins else self._scan_lines
                for place in scan():
                    places.extend(place)
        except OSError as error:
            raise ClaraError(f"{self.path}: {error.strerror or error}") from error
        if not places:
            raise NoRowsError(f"{self.path}: holds no records")
        self._places = np.frombuffer(places, np.int64).reshape(-1, 3)

    @classmethod
    def of(
        cls,
        path: str | Path,
        rows: Iterable[Row],
        kind: str = ": record ",
        names: Sequence[str] = (),
    ) -> Any:
        """Keep objects that a reader makes of the file `path`.

        Args:
          path: what the file is called.
          rows: the number of an object, such as its line; the object; and what is
            wrong with it, which asking for it raises.
          kind: between the file's name and the number in messages.
          names: of columns, of a table.
        """
        numbers, faults = array.array("q"), {}
        with scratch() as file:
            for number, value, fault in rows:
                if fault:
                    faults[len(numbers)] = fault
                text = json.dumps(value, ensure_ascii=False, default=_plain)
                file.write(text.encode("utf-8", "surrogatepass") + b"\n")
                numbers.append(number)
            file.flush()
            found = cls(path, file)
        found._places[:, 2] = numbers
        found._faults, found._is_array = faults, kind != ":"
        found.names = tuple(names)
        return found

    def _is_one_object(self) -> bool:
        """Whether the file is one object, spread over several lines."""
        if os.fstat(self._descriptor).st_size > _LARGE:
            return False
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as data:
            end = data.find(b"\n", data.find(b"{"))
            try:
                if end >= 0 and data[end:].strip():
                    json.loads(data[:end].removeprefix(_BOM))
                return False
            except ValueError:
                pass
            try:
                json.loads(data[:].removeprefix(_BOM))
            except (ValueError, RecursionError):
                return False
        return True

    def _scan_lines(self) -> Iterator[tuple[int, int, int]]:
        """Where each line starts and stops, and its number."""
        stop = 0
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(os.dup(self._descriptor), "rb") as file:
            for number, line in enumerate(file, 1):
                start, stop = stop, stop + len(line)
                if line.strip():
                    yield start, stop, number

    def _scan_array(self) -> Iterator[tuple[int, int, int]]:
        """Where each item starts and stops, and its number."""
        data = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        count, start, end, depth = 0, 0, data.find(b"[") + 1, 1
        for match in _TOKEN.finditer(data, end):
            step = _BRACKETS.get(match.group(), 0)
            if depth == 1:
                start = match.start()
                gap = _COMMA if count and step >= 0 else _SPACE
                if not gap.fullmatch(data, end, start):
                    raise ClaraError(
                        f"{self.path}: after record {count} stands something that is "
                        "not an object, text or single comma"
                    )
            depth += step
            if depth < 2:
                end = match.end()
            if depth == 1:
                count += 1
                yield start, end, count
            elif depth == 0:
                break
        if depth:
            raise ClaraError(f"{self.path}: ends in the middle, after record {count}")
        if not _SPACE.fullmatch(data, end):
            raise ClaraError(
                f"{self.path}: something follows the end of its JSON array"
            )

    def __len__(self) -> int:
        return len(self._places)

    def number(self, index: int) -> int:
        """Return the line of object `index`, or its number, from 1 on."""
        return int(self._places[index][2])

    def place(self, index: int) -> str:
        """Return where object `index` stands, for messages."""
        kind = ": record " if self._is_array else ":"
        return f"{self.path}{kind}{self.number(index)}"

    def __getitem__(self, index: int) -> tuple[Any, str]:
        start, end, _ = self._places[index]
        where = self.place(index)
        if fault := self._faults.get(index):
            raise RecordError(where, fault)
        data = os.pread(self._descriptor, int(end - start), int(start))
        try:
            return json.loads(data.removeprefix(_BOM).decode("utf-8")), where
        except UnicodeDecodeError as error:
            text = (
                f"is not UTF-8 (byte {error.start}); name its encoding with --encoding"
            )
            raise RecordError(where, text) from error
        except json.JSONDecodeError as error:
            text = f"is not JSON: {error.msg} (column {error.colno})"
            raise RecordError(where, text) from error
        except RecursionError as error:
            raise RecordError(where, "is nested too deeply") from error
        except ValueError as error:
            raise RecordError(where, f"is not JSON: {first_line(error)}") from error


def open_rows(path: str | Path, encoding: str = "") -> RowFile:
    """Open a file of objects, whatever its form.

    Args:
      path: a JSON or JSONL file, or by its ending a table, ``.parquet``, ``.csv`` or
        ``.tsv``; all with ``.gz``, ``.zst`` or ``.bz2`` after it if compressed. Rows of
        a table are objects without fields for empty cells; columns of CSV that hold
        nothing but numbers are numbers.
      encoding: of text that is not UTF-8; empty finds it, see `find_encoding`.

    Raises:
      ClaraError: as for `RowFile`; the file is not what its ending says, or not in
        this encoding.
    """
    require_encoding(encoding)
    path = str(path)
    with open_plain(path) as file:
        return _open(path, file, plain_ending(path), encoding)


def _open(path: str, file: IO[bytes], ending: str, encoding: str) -> RowFile:
    """Open a file by its ending, whatever it is called."""
    if ending == ".parquet":
        return _parquet(path, file)
    try:
        found = find_encoding(file, path, encoding)
    except ClaraError:
        if ending in (".csv", ".tsv"):
            raise
        found = "utf-8"  # with lines that are damaged, each of which is named
    if ending in (".csv", ".tsv"):
        names, table = read_table(path, file, found)
        rows = RowFile.of(path, table, ":", names)
    elif found in ("utf-8", "utf-8-sig"):
        rows = RowFile(path, file)
    else:
        with scratch() as plain:
            for text in decoded_lines(path, file, found):
                plain.write(text.encode("utf-8", "surrogatepass"))
            plain.flush()
            rows = RowFile(path, plain)
    rows.encoding = found
    return rows


def _parquet(path: str, file: IO[bytes]) -> RowFile:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = distinct_names(path, table.schema_arrow.names)
        batches = table.iter_batches(1024)
        every = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        rows = ((number, _filled(row), "") for number, row in enumerate(every, 1))
        return RowFile.of(path, rows, names=names)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        line = first_line(error)
        raise ClaraError(f"{path}: cannot be read as Parquet ({line})") from error


def _filled(value: Any) -> Any:
    """Leave out fields without a value, at any depth, as JSON would not have them."""
    if isinstance(value, Mapping):
        return {str(k): _filled(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_filled(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """A value of a table that JSON does not have."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
