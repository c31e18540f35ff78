"""Typed values out of mappings that others wrote: JSON files and metadata."""

from collections.abc import Mapping
from typing import Any, TypeVar

from clara_jax.errors import ClaraError

_TYPES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}

T = TypeVar("T", int, float, str, bool)


class Fields:
    """Typed values of the file `where`; null is absent where there is a default."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def error(self, text: str) -> ClaraError:
        """Return an error about the file."""
        return ClaraError(f"{self.where}: {text}")

    def only(self, name: str, *values: Any) -> None:
        """Refuse all other values of this field; absent is None."""
        value = self.values.get(name)
        if value not in values:
            raise self.error(f"field '{name}' is {value!r}, which is not supported")

    def required(self, name: str) -> Any:
        """Return any value that is not null."""
        if self.values.get(name) is None:
            raise self.error(f"field '{name}' is missing")
        return self.values[name]

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a value of this type, or the default."""
        if default is not None and self.values.get(name) is None:
            return default
        value = self.required(name)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (type(value) is bool and kind is not bool):
            raise self.error(f"field '{name}' must be {_TYPES[kind]}, not {value!r}")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        """Return a whole number above 0."""
        value = self.values.get(name, default)
        if type(value) is not int or value < 1:
            wanted = "a whole number above 0"
            raise self.error(f"field '{name}' must be {wanted}, not {value!r}")
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """Return a list of `length` numbers above 0."""
        value = self.required(name)
        if not isinstance(value, list | tuple):
            raise self.error(f"field '{name}' must be a list, not {value!r}")
        good = all(isinstance(v, int | float) and v > 0 for v in value)
        if len(value) != length or not good:
            raise self.error(f"field '{name}' must hold {length} numbers above 0")
        return tuple(float(v) for v in value)
