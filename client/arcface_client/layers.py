"""Settings in layers: argument over environment over file over default.

A setting's key is its path in the YAML file, as ``triton.url``; its environment variable is
``ARCFACE_`` and the key in capitals, as ``ARCFACE_TRITON_URL``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from .errors import ConfigError

Defaults = Mapping[str, tuple[Callable[[str], Any], Any]]
"""Every key, with what makes its value from a text, and its default."""

_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def boolean(text: str) -> bool:
    """Make true or false of a text; raises KeyError for another one."""
    return _BOOLEANS[text.lower()]


def variable(key: str) -> str:
    """The environment variable of a key; a key's own ``arcface_`` is not said twice."""
    return "ARCFACE_" + key.removeprefix("arcface_").upper().replace(".", "_")


def read_layers(
    defaults: Defaults,
    path: Path | None,
    *,
    environment: Mapping[str, str],
    arguments: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Read the value of every key.

    Args:
        defaults: The keys.
        path: A YAML file, if there is one.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
    """
    values = {key: default for key, (_, default) in defaults.items()}
    if path is not None:
        for key, value in _read_yaml(path, defaults):
            values[key] = _parse(defaults, key, value, str(path))
    for key in defaults:
        name = variable(key)
        if name in environment:
            values[key] = _parse(defaults, key, environment[name], name)
    for key, argument in (arguments or {}).items():
        if argument is not None:
            values[key] = argument
    return values


def _read_yaml(path: Path, defaults: Defaults) -> Iterator[tuple[str, object]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for key, value in _flatten(content or {}, path, defaults):
        if key not in defaults:
            raise ConfigError(f"{path} has the unknown key {key}; known keys: {', '.join(defaults)}.")
        yield key, value


def _flatten(
    content: object, path: Path, defaults: Defaults, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has {content!r} where {prefix or 'the file'} should hold keys and values.")
    for name, value in content.items():
        key = f"{prefix}{name}"
        is_section = any(known.startswith(f"{key}.") for known in defaults)
        if key not in defaults and (isinstance(value, dict) or is_section):
            yield from _flatten(value or {}, path, defaults, f"{key}.")
        else:
            yield key, value


def _parse(defaults: Defaults, key: str, value: object, where: str) -> Any:
    make, default = defaults[key]
    if value is None:
        return default
    try:
        return make(str(value))
    except (ValueError, KeyError) as error:
        kind = {int: "a whole number", float: "a number"}.get(make, "true or false")  # type: ignore[call-overload]
        raise ConfigError(f"{where}: {key} is {value!r}; expected {kind}.") from error
