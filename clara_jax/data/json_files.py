"""Random access to the objects of a JSON file, without reading it into memory.

Only the place of every object is kept (24 bytes each); an object is read and parsed
when it is asked for. Any number of threads may read at once, and copies for other
processes open the file anew.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from clara_jax.errors import ClaraError
from clara_jax.files import first_line

_BOM = b"\xef\xbb\xbf"
# Strings are skipped whole, so that brackets within them do not count.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_BRACKETS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_SPACE, _COMMA = re.compile(rb"\s*"), re.compile(rb"\s*,\s*")


class JsonFile:
    """The objects of a file: one a line (JSONL), or the items of one JSON array.

    Indexing gives an object and where it stands: ``file:line`` in JSONL (blank lines
    are skipped, but counted), ``file: record N`` in an array, where N counts from 1.

    Args:
      path: a UTF-8 file.

    Raises:
      ClaraError: the file cannot be read, holds nothing, or is an array that ends
        early; on indexing, an object that is not JSON.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            self._open()
            head = os.pread(self._descriptor, 4096, 0).removeprefix(_BOM).lstrip()
            self._is_array = head.startswith(b"[")
            places = self._scan_array() if self._is_array else self._scan_lines()
        except OSError as error:
            raise ClaraError(f"{self.path}: {error.strerror or error}") from error
        if not places:
            raise ClaraError(f"{self.path}: holds no records")
        self._places = np.frombuffer(places, np.int64).reshape(-1, 3)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY)
        self._closer = weakref.finalize(self, os.close, self._descriptor)

    def _scan_lines(self) -> array.array[int]:
        places = array.array("q")
        start = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    places.extend((start, start + len(line), number))
                start += len(line)
        return places

    def _scan_array(self) -> array.array[int]:
        places = array.array("q")
        start = count = 0
        depth = 1
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as data:
            end = data.find(b"[") + 1
            for match in _TOKEN.finditer(data, end):
                step = _BRACKETS.get(match.group(), 0)
                if depth == 1:
                    start = match.start()
                    gap = _COMMA if count and step >= 0 else _SPACE
                    if not gap.fullmatch(data, end, start):
                        raise ClaraError(
                            f"{self.path}: after record {count} stands something that "
                            "is not an object, text or single comma"
                        )
                depth += step
                if depth == 1:
                    count, end = count + 1, match.end()
                    places.extend((start, end, count))
                elif depth == 0:
                    end = match.end()
                    break
            if depth > 0:
                raise ClaraError(
                    f"{self.path}: ends in the middle, after record {count}"
                )
            if not _SPACE.fullmatch(data, end):
                raise ClaraError(
                    f"{self.path}: something follows the end of its JSON array"
                )
        return places

    def __len__(self) -> int:
        return len(self._places)

    def number(self, index: int) -> int:
        """Return the line of object `index`, or its place in the array, from 1 on."""
        return int(self._places[index][2])

    def place(self, index: int) -> str:
        """Return where object `index` stands, for messages."""
        kind = ": record " if self._is_array else ":"
        return f"{self.path}{kind}{self.number(index)}"

    def __getitem__(self, index: int) -> tuple[Any, str]:
        start, end, _ = self._places[index]
        where = self.place(index)
        data = os.pread(self._descriptor, int(end - start), int(start))
        try:
            return json.loads(data.removeprefix(_BOM).decode("utf-8")), where
        except UnicodeDecodeError as error:
            raise ClaraError(f"{where}: is not UTF-8 (byte {error.start})") from error
        except json.JSONDecodeError as error:
            raise ClaraError(
                f"{where}: is not JSON: {error.msg} (column {error.colno})"
            ) from error
        except RecursionError as error:
            raise ClaraError(f"{where}: is nested too deeply") from error
        except ValueError as error:
            raise ClaraError(f"{where}: is not JSON: {first_line(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_descriptor", "_closer")
        return {k: v for k, v in self.__dict__.items() if k not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
