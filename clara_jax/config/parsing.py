"""Plain mappings to checked dataclasses and back; errors name the user's field."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from clara_jax.errors import ClaraError

T = TypeVar("T")


def require(condition: bool, field: str, message: str) -> None:
    """Refuse `field` with `message` unless `condition` holds."""
    if not condition:
        raise ClaraError(f"config field '{field}': {message}")


def positive(section: str, obj: Any, *names: str) -> None:
    """Refuse the fields of `obj` called `names` that are not above 0."""
    for name in names:
        value = getattr(obj, name)
        require(value > 0, f"{section}.{name}", f"must be above 0, not {value}")


def not_negative(section: str, obj: Any, *names: str) -> None:
    """Refuse the fields of `obj` called `names` that are below 0."""
    for name in names:
        value = getattr(obj, name)
        field = f"{section}.{name}".lstrip(".")
        require(value >= 0, field, f"must not be negative, but is {value}")


def below_one(section: str, obj: Any, *names: str) -> None:
    """Refuse the fields of `obj` called `names` that are not from 0 to below 1."""
    for name in names:
        value = getattr(obj, name)
        require(0 <= value < 1, f"{section}.{name}", f"must be in [0, 1), not {value}")


def check_choices(section: str, obj: Any) -> None:
    """Refuse values of fields of type ``Literal``, or tuples of it, that it lacks."""
    for name, hint in typing.get_type_hints(type(obj)).items():
        value, inner = getattr(obj, name), typing.get_args(hint)
        several = typing.get_origin(hint) is tuple
        hint = inner[0] if several else hint
        if typing.get_origin(hint) is not Literal:
            continue
        choices = typing.get_args(hint)
        for one in value if several else (value,):
            require(
                one in choices,
                f"{section}.{name}".lstrip("."),
                f"is '{one}', but must be one of {', '.join(filter(None, choices))}",
            )


def parse(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `cls` from a mapping, nested ones included.

    Lists become tuples where the field is a tuple. Errors put `where`, what the mapping
    was read from, before field names.

    Raises:
      ClaraError: a key that `cls` does not have (the nearest one is suggested), a
        missing field, a value of the wrong type, or one that the class refuses.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    start = f"{where}." if where else ""
    arguments = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, list(known), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ClaraError(f"config field '{start}{key}' is unknown{hint}")
        arguments[key] = _cast(hints[key], value, f"{start}{key}")
    for name, field in known.items():
        given = (field.default, field.default_factory)
        none = all(value is dataclasses.MISSING for value in given)
        if none and name not in arguments:
            raise ClaraError(f"config field '{start}{name}' is missing")
    return cls(**arguments)


def _cast(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise ClaraError(f"config field '{path}' must be a group of fields")
        return parse(typing.cast(type, hint), value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _cast(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        if isinstance(value, str):
            value = (value,) if value else ()
        if not isinstance(value, (list, tuple)):
            raise ClaraError(f"config field '{path}' must be a list, not {value!r}")
        return tuple(_cast(args[0], item, path) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        name = hint.__name__
        raise ClaraError(f"config field '{path}' must be {name}, not {value!r}")
    return value


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Turn nested mappings into one, of dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{name}.{key}" if name else str(key))
    return flat


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values, the inverse of `parse`."""
    return dataclasses.asdict(config)
