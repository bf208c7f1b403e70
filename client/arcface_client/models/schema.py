"""How a manifest's JSON is checked: the types of its fields, and one line for what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import ManifestError, ManifestSchemaError
from .embedding_space import PRECISIONS

SCHEMA_VERSION: Final = 1
"""Of the fields of both manifests."""

Setting: TypeAlias = str | int | float | bool | None
"""A value of a plan's settings."""

STRICT: Final = ConfigDict(strict=True)
"""No conversions: a text is not a number."""

_EXPECTED: Final = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "an object",
    "dict_type": "an object",
    "dataclass_type": "an object",
}

Manifest = TypeVar("Manifest")


def _matching(pattern: str, expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _moment(value: str) -> str:
    try:
        if datetime.fromisoformat(value).tzinfo is not None:
            return value
    except ValueError:
        pass
    raise ValueError("ISO 8601 with an offset, for example 2026-11-22T20:00:00+00:00")


Sha256: TypeAlias = Annotated[str, _matching(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Moment: TypeAlias = Annotated[str, AfterValidator(_moment)]
Drift: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Family: TypeAlias = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", "up to 100 letters, digits, '_', '-' and '.'")
]
TensorRtVersion: TypeAlias = Annotated[
    str,
    _matching(
        r"\d+(\.\d+){2,3}((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?", "a full version, for example 10.16.1.11"
    ),
]
Sm: TypeAlias = Annotated[str, _matching(r"[1-9]\d{1,2}", "digits alone, for example 86")]
Precision: TypeAlias = Annotated[str, _matching("|".join(PRECISIONS), f"one of {', '.join(PRECISIONS)}")]


def to_json(manifest: Any) -> str:
    """Write a manifest, a dataclass, as JSON."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def read_file(kind: type[Manifest], path: Path, remedy: str) -> Manifest:
    """Read a manifest's file; see ``parse``."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"Cannot read the manifest {path}: {error.strerror}. {remedy}") from error
    return parse(kind, text, str(path), remedy)


def parse(kind: type[Manifest], text: str | bytes, where: str, remedy: str) -> Manifest:
    """Read a manifest's text.

    Args:
        kind: The manifest, a pydantic dataclass.
        text: The JSON.
        where: Names it in messages.
        remedy: A sentence that says how to get a good one.

    Raises:
        ManifestSchemaError: Another version of this project wrote it.
        ManifestError: A field is missing or wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    for problem in problems:
        if problem["loc"] == ("schema_version",):
            raise ManifestSchemaError(
                f"{where} has schema_version {problem['input']!r:.80}; expected {SCHEMA_VERSION}. "
                f"Another version of arcface-triton wrote it. {remedy}"
            )
    problem = problems[0]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "json_invalid":
        raise ManifestError(f"{where} is not JSON ({problem['ctx']['error']}). {remedy}")
    if problem["type"] == "missing":
        raise ManifestError(f"{where} lacks {field}. {remedy}")
    expected = _EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    expected = expected.removeprefix("Input should be ")
    subject = f"{where}: {field}" if field else where
    raise ManifestError(f"{subject} is {problem['input']!r:.80}; expected {expected}. {remedy}")
