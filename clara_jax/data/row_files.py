"""The objects of a file by number: JSON, Parquet, CSV and TSV, compressed or not.

Objects are read when they are asked for. What is not JSON in UTF-8 already is written
as such, once, to a temporary file without a name.
"""

import array
import csv
import datetime
import decimal
import functools
import itertools
import json
import mmap
import os
import re
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from clara_jax.data.encodings import find_encoding, require_encoding
from clara_jax.data.plain_files import open_plain, plain_ending, scratch
from clara_jax.errors import ClaraError
from clara_jax.files import first_line

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
"""Endings of files that hold objects."""

_BOM = b"\xef\xbb\xbf"
# Strings are skipped whole, so that brackets within them do not count.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_BRACKETS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_SPACE, _COMMA = re.compile(rb"\s*"), re.compile(rb"\s*,\s*")
_DELIMITERS = ",;\t|"
_HEADERLESS = ("id", "text")
"""What the columns of a file are called that has two of them, and numbers in the first
place where others have names, as MS MARCO's."""

_Row = tuple[int, Any, str]
"""Line or number of an object, the object, and what is wrong with it, if anything."""


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

    Raises:
      ClaraError: the file cannot be read, holds nothing, or is an array that ends
        early; on indexing, an object that is not JSON, or a row of a table that is not
        like the others.
    """

    def __init__(self, path: str | Path, file: IO[bytes] | None = None):
        self.path = str(path)
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
            raise ClaraError(f"{self.path}: holds no records")
        self._places = np.frombuffer(places, np.int64).reshape(-1, 3)

    @classmethod
    def of(cls, path: str | Path, rows: Iterable[_Row], kind: str = ": record ") -> Any:
        """Keep objects that a reader makes of the file `path`.

        Args:
          path: what the file is called.
          rows: the number of an object, such as its line; the object; and what is
            wrong with it, which asking for it raises.
          kind: between the file's name and the number in messages.
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
        return found

    def _is_one_object(self) -> bool:
        """Whether the file is one object, spread over several lines."""
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
            raise ClaraError(f"{where}: {fault}")
        data = os.pread(self._descriptor, int(end - start), int(start))
        try:
            return json.loads(data.removeprefix(_BOM).decode("utf-8")), where
        except UnicodeDecodeError as error:
            text = (
                f"is not UTF-8 (byte {error.start}); name its encoding with --encoding"
            )
            raise ClaraError(f"{where}: {text}") from error
        except json.JSONDecodeError as error:
            text = f"is not JSON: {error.msg} (column {error.colno})"
            raise ClaraError(f"{where}: {text}") from error
        except RecursionError as error:
            raise ClaraError(f"{where}: is nested too deeply") from error
        except ValueError as error:
            raise ClaraError(f"{where}: is not JSON: {first_line(error)}") from error


def open_rows(path: str | Path, encoding: str = "") -> RowFile:
    """Open a file of objects, whatever its form.

    Args:
      path: a JSON or JSONL file, or by its ending a table, ``.parquet``, ``.csv`` or
        ``.tsv``; all with ``.gz``, ``.zst`` or ``.bz2`` after it if compressed. Rows of
        a table are objects without fields for empty cells; columns of CSV that hold
        nothing but numbers are numbers.
      encoding: of text; empty finds it for tables as `find_encoding` does, and for JSON
        by its byte order mark, else UTF-8.

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
        return RowFile.of(path, _parquet_rows(path, file))
    if ending in (".csv", ".tsv"):
        encoding = encoding or find_encoding(file, path)
        return RowFile.of(path, _table_rows(path, file, encoding), ":")
    wide = file.read(4).startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    if not encoding and not wide:
        return RowFile(path, file)
    with scratch() as plain:
        for text in _decoded(path, file, encoding or find_encoding(file, path)):
            plain.write(text.encode("utf-8", "surrogatepass"))
        plain.flush()
        return RowFile(path, plain)


def _decoded(path: str, file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield the lines of a file with their ends as they are, one pass at a time."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    with open(os.dup(file.fileno()), encoding=encoding, newline="\n") as text:
        try:
            yield from text
        except UnicodeError as error:
            raise ClaraError(
                f"{path}: is not {encoding} ({first_line(error)}); name its encoding "
                "with --encoding"
            ) from error


def _parquet_rows(path: str, file: IO[bytes]) -> Iterator[_Row]:
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, _filled(row), ""
    except pa.ArrowException as error:
        raise ClaraError(
            f"{path}: cannot be read as Parquet ({first_line(error)})"
        ) from error


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


def _table_rows(path: str, file: IO[bytes], encoding: str) -> Iterator[_Row]:
    """Yield the rows of a table of text as objects by the names of its header."""
    csv.field_size_limit(sys.maxsize)
    lines = functools.partial(_decoded, path, file, encoding)
    head = next(lines(), "")
    tabs = ".tsv" in os.path.basename(path).lower()
    sign = "\t" if tabs else max(_DELIMITERS, key=head.count)
    given: dict[str, Any] = {"delimiter": sign}
    # Many tables with tabs have quotes that quote nothing.
    if tabs and not _is_even(csv.reader(lines(), strict=True, **given)):
        given["quoting"] = csv.QUOTE_NONE
    names = [name.strip() for name in next(csv.reader([head], **given), [])]
    headerless = len(names) == 2 and names[0].isdecimal()
    numeric = _numeric(csv.reader(lines(), **given), len(names), headerless)
    reader = csv.reader(lines(), **given)
    if headerless:
        names = list(_HEADERLESS)
    else:
        next(reader, None)
    before = reader.line_num
    try:
        for row in reader:
            number, before = before + 1, reader.line_num
            if not any(row):
                continue
            if len(row) != len(names):
                has = f"has {len(row)} fields, but the header names {len(names)}"
                yield number, None, f"{has} ({', '.join(names)[:200]})"
                continue
            cells = zip(names, row, numeric, strict=True)
            yield number, {n: kind(v) for n, v, kind in cells if v and n}, ""
    except csv.Error as error:
        raise ClaraError(f"{path}:{before + 1}: {first_line(error)}") from error


def _is_even(rows: Iterator[list[str]]) -> bool:
    """Whether all rows have as many fields as the first, and no line end in them."""
    widths = set()
    try:
        for row in rows:
            widths.add(len(row))
            if len(widths) > 1 or "\n" in "".join(row):
                return False
        return True
    except csv.Error:
        return False


def _numeric(rows: Iterator[list[str]], width: int, headerless: bool) -> list[type]:
    """Return for each column the type whose values are spelled as its cells are."""
    kinds: list[type] = [int] * width
    try:
        for row in itertools.islice(rows, 0 if headerless else 1, None):
            for i, cell in enumerate(row[:width] if kinds else ()):
                while cell and kinds[i] is not str and not _spells(cell, kinds[i]):
                    kinds[i] = float if kinds[i] is int else str
    except csv.Error:
        return [str] * width
    return kinds


def _spells(cell: str, kind: type) -> bool:
    try:
        return str(kind(cell)) == cell and cell not in ("nan", "inf", "-inf")
    except ValueError:
        return False
