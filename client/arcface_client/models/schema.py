"""How a manifest's JSON is checked: the types of its fields, and one line for what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import Self

from ..errors import ManifestError, ManifestSchemaError
from .embedding_space import PRECISIONS
from .signature import check_signature

SCHEMA_VERSION: Final = 1
"""Of the fields of both manifests."""

Setting: TypeAlias = str | int | float | bool | None
"""A value of a plan's settings."""

STRICT: Final = ConfigDict(strict=True)
"""No conversions: a text is not a number."""


def _moment(value: str) -> str:
    try:
        if datetime.fromisoformat(value).tzinfo is not None:
            return value
    except ValueError:
        pass
    raise ValueError("Expected ISO 8601 with an offset, for example 2026-11-22T20:00:00+00:00")


Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Moment: TypeAlias = Annotated[str, AfterValidator(_moment)]
Drift: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Family: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
TensorRtVersion: TypeAlias = Annotated[
    str, Field(pattern=r"^[0-9]+(\.[0-9]+){2,3}((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?$")
]
Sm: TypeAlias = Annotated[str, Field(pattern=r"^[1-9][0-9]{1,2}$")]
Precision: TypeAlias = Annotated[str, Field(pattern=f"^({'|'.join(PRECISIONS)})$")]


def expectation(problem: Any) -> str:
    """What was expected, in words, from one of pydantic's ``ValidationError.errors()``."""
    said = "^(Value error, )?(.*?[Ee]xpected |Input should be |String should (have|match) )?"
    return "expected " + re.sub(said, "", problem["msg"]).rstrip(".")


@dataclass(frozen=True)
class ManifestFile:
    """What both kinds of manifests can do: be written as JSON, and be read again."""

    COMMAND: ClassVar[str]
    """The command that writes a good one."""

    def to_json(self) -> str:
        """The manifest as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest's file; raises ManifestError, also without a signature that is asked for."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ManifestError(
                f"Cannot read the manifest {path}: {error.strerror}. Run `{cls.COMMAND}` again."
            ) from error
        check_signature(path, text)
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Self:
        """Read a manifest's text; ``where`` names it in messages.

        Raises:
            ManifestSchemaError: Another version of this project wrote it.
            ManifestError: A field is missing or wrong.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        for problem in problems:
            if problem["loc"] == ("schema_version",):
                raise ManifestSchemaError(
                    f"{where} has schema_version {problem['input']!r:.80}; expected {SCHEMA_VERSION}. "
                    f"Another version of arcface-triton wrote it. Run `{cls.COMMAND}` again."
                )
        problem = problems[0]
        field = ".".join(map(str, problem["loc"]))
        if problem["type"] == "json_invalid":
            fault = f"is not JSON ({problem['ctx']['error']})"
        elif problem["type"] == "missing":
            fault = f"lacks {field}"
        else:
            fault = f"has {field or 'the content'} {problem['input']!r:.80}; {expectation(problem)}"
        raise ManifestError(f"{where} {fault}. Run `{cls.COMMAND}` again.")
