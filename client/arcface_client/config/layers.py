"""Settings in layers: argument over environment over file over default.

A setting's key is its path in the YAML file, as ``triton.url``; its environment variable is
``ARCFACE_`` and the key in capitals, as ``ARCFACE_TRITON_URL``; an empty variable is ignored, and one that
is nobody's is warned of.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ..errors import ConfigError

_log = logging.getLogger(__name__)

_BOOLEANS: Final = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(
    ("false", "0", "no", "off"), False
)


@dataclass(frozen=True)
class Kind:
    """What a setting's value may be.

    Attributes:
        make: Makes the value from a text; raises ValueError or KeyError for a text that it is not.
        expected: What is expected, for messages.
        takes: The types that YAML may give for it.
    """

    make: Callable[[str], Any]
    expected: str
    takes: tuple[type, ...] = (str, int, float)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def _tolerance(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:  # written so that NaN fails as well
        raise ValueError(text)
    return number


def _parts(text: str) -> tuple[str, ...]:
    return tuple(_filled(part).strip() for part in text.split(",")) if text else ()


TEXT: Final = Kind(_filled, "a text")
WHOLE: Final = Kind(int, "a whole number", (str, int))
NUMBER: Final = Kind(_finite, "a number")
TOLERANCE: Final = Kind(_tolerance, "a number above 0 and below 1")
BOOLEAN: Final = Kind(lambda text: _BOOLEANS[text.lower()], "true or false", (str, int, bool))
PATH: Final = Kind(lambda text: Path(_filled(text)), "a path", (str, Path))
TEXTS: Final = Kind(
    _parts, "a text, several with commas between them, or a list of texts", (str, list, tuple)
)


_MAX_DEPTH: Final = 8  # of sections; an alias of YAML's that holds itself has no end
_KUBERNETES: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_[A-Z]+(_\w+)?)=|_PORT=\w+://")
"""Variables that pods find for each service, as for one named arcface-triton."""


def one_of(values: Mapping[str, Any]) -> Kind:
    """One of a few words, each of which stands for a value; "true" and "false" may be said as any boolean."""

    def make(text: str) -> Any:
        word = text.lower()
        return values[word if word in values else str(_BOOLEANS[word]).lower()]

    return Kind(make, f"one of {', '.join(values)}", (str, int, bool))


Defaults = Mapping[str, tuple[Kind, Any]]
"""Every key, with what its value may be, and its default."""


def variable(key: str) -> str:
    """The environment variable of a key; a key's own ``arcface_`` is not said twice."""
    return "ARCFACE_" + key.removeprefix("arcface_").upper().replace(".", "_")


def read_layers(
    defaults: Defaults,
    path: Path | None,
    *,
    usual_path: Path,
    environment: Mapping[str, str],
    arguments: Mapping[str, object] | None = None,
    others: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read the value of every key.

    Args:
        defaults: The keys.
        path: A YAML file; None takes the usual one where that exists.
        usual_path: Where the file usually is.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.
        others: How variables begin that somebody else reads.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
    """
    if path is None and usual_path.is_file():
        path = usual_path
    values = {key: default for key, (_, default) in defaults.items()}
    if path is not None:
        for key, value in _read_yaml(path, defaults):
            values[key] = _parse(defaults, key, value, f"{path}: ")
    keys = {variable(key): key for key in defaults}
    for name, text in environment.items():
        if text and name in keys:
            values[keys[name]] = _parse(defaults, keys[name], text, f"{name}: ")
        elif text and name.startswith("ARCFACE_") and not _is_of_others(name, text, others):
            _log.warning("The environment variable %s is ignored: there is no such setting", name)
    for key, argument in (arguments or {}).items():
        if argument is not None:
            values[key] = _parse(defaults, key, argument, "")
    return values


def _is_of_others(name: str, text: str, others: tuple[str, ...]) -> bool:
    known = name == "ARCFACE_CACHE_DIR" or name.startswith(others)
    return known or _KUBERNETES.search(f"{name}={text}") is not None


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that comes twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        texts = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if texts.count(key.value) > 1:
                problem = f"the key {key.value!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, defaults: Defaults) -> Iterator[tuple[str, object]]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for key, value in _flatten({} if content is None else content, path, defaults):
        if key not in defaults:
            raise ConfigError(f"{path} has the unknown key {key}; known keys: {', '.join(defaults)}.")
        yield key, value


def _flatten(
    content: object, path: Path, defaults: Defaults, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} has {content!r} where {prefix.rstrip('.') or 'the file'} should hold keys and values."
        )
    if prefix.count(".") > _MAX_DEPTH:
        raise ConfigError(f"{path} nests keys deeper than any setting, from {prefix[:40]} on.")
    for name, value in content.items():
        key = f"{prefix}{name}"
        is_section = any(known.startswith(f"{key}.") for known in defaults)
        if key not in defaults and (isinstance(value, dict) or is_section):
            yield from _flatten({} if value is None else value, path, defaults, f"{key}.")
        else:
            yield key, value


def _text(value: object, kind: Kind) -> str:
    """The text of a value as YAML or a caller gives it; raises ValueError for one of another type."""
    # A truth value is a number to Python, and a mapping would make a text as well.
    if not isinstance(value, kind.takes) or (isinstance(value, bool) and bool not in kind.takes):
        raise ValueError(value)
    if isinstance(value, (list, tuple)):
        return ",".join(_text(item, TEXT) for item in value)
    return str(value)


def _parse(defaults: Defaults, key: str, value: object, where: str) -> Any:
    kind, default = defaults[key]
    if value is None:
        return default
    try:
        return kind.make(_text(value, kind))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{where}{key} is {value!r}; expected {kind.expected}.") from error
