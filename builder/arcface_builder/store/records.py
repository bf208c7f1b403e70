"""Read frozen dataclasses from JSON, believing none of it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import PlanManifestError

T = TypeVar("T")


def read_record(kind: type[T], value: object, at: str) -> T:
    """Make a dataclass from decoded JSON; every field without a default must be there, and nothing else.

    Args:
        kind: A dataclass of strings, numbers, booleans, mappings, tuples and further dataclasses.
        value: What ``json.loads`` gave.
        at: Where it stands, for messages.

    Raises:
        PlanManifestError: A field is missing, unknown, or of another type.
    """
    if not isinstance(value, dict):
        raise PlanManifestError(f"{at} is {value!r:.80}; expected an object.")
    hints = get_type_hints(kind)
    items = fields(kind)  # type: ignore[arg-type]
    names = {item.name for item in items}
    needed = {item.name for item in items if item.default is MISSING and item.default_factory is MISSING}
    if not needed <= value.keys() <= names:
        missing, unknown = sorted(needed - value.keys()), sorted(value.keys() - names)
        what = [f"lacks {', '.join(missing)}"] * bool(missing)
        what += [f"has the unknown {', '.join(unknown)}"] * bool(unknown)
        raise PlanManifestError(f"{at} {' and '.join(what)}; it was not written by this version.")
    return kind(**{name: _read(hints[name], value[name], f"{at}.{name}") for name in value})


def _read(hint: Any, value: object, at: str) -> Any:
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return read_record(hint, value, at)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, f"{at}[{index}]") for index, item in enumerate(value))
    scalars = arguments if origin is types.UnionType else (hint,)
    if origin in (None, types.UnionType) and type(value) in scalars:
        return value
    if float in scalars and type(value) is int:
        return float(value)
    raise PlanManifestError(f"{at} is {value!r:.80}; expected {_describe(hint)}.")


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    words |= {Mapping: "an object", tuple: "a list"}
    return words.get(hint) or words.get(get_origin(hint)) or "a text, a number, true, false or null"
