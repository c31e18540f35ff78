"""Tables of text: CSV and TSV, as spreadsheets and data sets have them."""

import csv
import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any

from clara_jax.errors import ClaraError
from clara_jax.files import first_line

Row = tuple[int, Any, str]
"""Line or number of an object, the object, and what is wrong with it, if anything."""

_DELIMITERS = ",;\t|"
_HEADERLESS = ("id", "text")
"""What the columns of a file are called that has two of them, and numbers in the first
place where others have names, as MS MARCO's."""


def read_table(
    path: str, file: IO[bytes], encoding: str
) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Return the names of a table's columns, and its rows as objects by these names.

    Cells that are empty are left out. Columns of which every cell is spelled as a whole
    number, or as a decimal, is in Python hold numbers.

    Raises:
      ClaraError: it is not a table, two columns have one name, or a quote has no end.
    """
    csv.field_size_limit(sys.maxsize)
    lines = functools.partial(decoded_lines, path, file, encoding, "")
    tabs = ".tsv" in os.path.basename(path).lower()
    head, skipped = "", 0
    for head in lines():
        if head.strip() and not head.startswith("sep="):  # as Excel begins a file
            break
        skipped += 1
    sign = "\t" if tabs else max(_DELIMITERS, key=head.count)

    def reader(**more: Any) -> Iterator[list[str]]:
        left = itertools.islice(lines(), skipped, None)
        return csv.reader(left, delimiter=sign, **{**quotes, **more})

    quotes: dict[str, Any] = {}
    # Many tables with tabs have quotes that quote nothing.
    if tabs and not _is_even(reader(strict=True)):
        quotes = {"quoting": csv.QUOTE_NONE}
    try:
        names = [name.strip() for name in next(reader(), [])]
        headerless = len(names) == 2 and names[0].isdecimal()
        _refuse_open_quote(path, reader(strict=True))
        numeric = _numeric(reader(), len(names), headerless)
        names = list(_HEADERLESS) if headerless else names
    except csv.Error as error:
        raise ClaraError(f"{path}: is not a table ({first_line(error)})") from error
    rows = _objects(reader(), names, numeric, skipped, headerless)
    return distinct_names(path, names), rows


def _refuse_open_quote(path: str, rows: Any) -> None:
    """Refuse a quote without an end, in which the rest of the file would be."""
    end = 0
    try:
        for _ in rows:
            end = rows.line_num
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise ClaraError(
                f"{path}:{end + 1}: a quote is opened here and never closed"
            ) from error


def _objects(
    rows: Any,
    names: Sequence[str],
    numeric: Sequence[type],
    skipped: int,
    headerless: bool,
) -> Iterator[Row]:
    if not headerless:
        next(rows, None)
    before = rows.line_num
    for row in rows:
        number, before = before + 1, rows.line_num
        if not any(row):
            continue
        row += [""] * (len(names) - len(row))
        if any(row[len(names) :]):
            has = f"has {len(row)} fields, but the header names {len(names)}"
            yield skipped + number, None, f"{has} ({', '.join(names)[:200]})"
            continue
        cells = zip(names, row, numeric, strict=False)
        yield skipped + number, {n: kind(v) for n, v, kind in cells if v and n}, ""


def decoded_lines(
    path: str, file: IO[bytes], encoding: str, newline: str = "\n"
) -> Iterator[str]:
    """Yield the lines of a file with their ends as they are, one pass at a time."""
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    with open(os.dup(file.fileno()), encoding=encoding, newline=newline) as text:
        try:
            yield from text
        except UnicodeError as error:
            raise ClaraError(
                f"{path}: is not {encoding} ({first_line(error)}); name its encoding "
                "with --encoding"
            ) from error


def distinct_names(path: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns that are not empty; refuse a name that two have."""
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        raise ClaraError(f"{path}: has two columns '{twice[0]}'; rename one")
    return tuple(filter(None, names))


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
