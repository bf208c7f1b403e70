"""Settings of the client: argument over environment over file over default.

A setting's key is its path in the YAML file, as ``triton.url``; its environment variable is
``ARCFACE_`` and the key in capitals, as ``ARCFACE_TRITON_URL``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from .client import DEFAULT_MAX_IN_FLIGHT, DEFAULT_MODEL, DEFAULT_REQUEST_TIMEOUT_S, EmbeddingClient
from .connection import Tls
from .errors import ConfigError

DEFAULT_PATH: Final = Path("config/pipeline/embedding.yaml")


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """Which server, which model, and within what limits; the attributes are ``EmbeddingClient``'s."""

    url: str
    model: str
    version: int | None
    request_timeout_s: float
    max_in_flight: int
    tls: Tls | None

    def client(self) -> EmbeddingClient:
        """Make a client with these settings."""
        return EmbeddingClient(
            self.url,
            self.model,
            self.version,
            request_timeout_s=self.request_timeout_s,
            max_in_flight=self.max_in_flight,
            tls=self.tls,
        )


_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_DEFAULTS: Final[Mapping[str, tuple[Callable[[str], Any], Any]]] = {
    "triton.url": (str, "localhost:8001"),
    "triton.model": (str, DEFAULT_MODEL),
    "triton.version": (int, None),
    "triton.request_timeout_s": (float, DEFAULT_REQUEST_TIMEOUT_S),
    "triton.max_in_flight": (int, DEFAULT_MAX_IN_FLIGHT),
    "triton.tls.enabled": (lambda text: _BOOLEANS[text.lower()], False),
    "triton.tls.root_certificates": (Path, None),
    "triton.tls.private_key": (Path, None),
    "triton.tls.certificate_chain": (Path, None),
}
"""Every key, with what makes its value from a text, and its default."""


def load_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> TritonSettings:
    """Read the settings.

    Args:
        path: A YAML file; None takes ``config/pipeline/embedding.yaml`` where that exists.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
    """
    values = {key: default for key, (_, default) in _DEFAULTS.items()}
    if path is None and DEFAULT_PATH.is_file():
        path = DEFAULT_PATH
    if path is not None:
        values |= {key: _parse(key, value, str(path)) for key, value in _read_yaml(path)}
    for key in _DEFAULTS:
        variable = "ARCFACE_" + key.upper().replace(".", "_")
        if variable in environment:
            values[key] = _parse(key, environment[variable], variable)
    for key, value in (arguments or {}).items():
        if value is not None:
            values[key] = value
    tls = {key.removeprefix("triton.tls."): values.pop(key) for key in _DEFAULTS if "tls" in key}
    wants_tls = tls.pop("enabled") or any(tls.values())
    plain = {key.removeprefix("triton."): value for key, value in values.items()}
    return TritonSettings(**plain, tls=Tls(**tls) if wants_tls else None)


def _read_yaml(path: Path) -> Iterator[tuple[str, object]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for key, value in _flatten(content or {}, path):
        if key not in _DEFAULTS:
            raise ConfigError(f"{path} has the unknown key {key}; known keys: {', '.join(_DEFAULTS)}.")
        yield key, value


def _flatten(content: object, path: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has {content!r} where {prefix or 'the file'} should hold keys and values.")
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key not in _DEFAULTS and (isinstance(value, dict) or _is_section(key)):
            yield from _flatten(value or {}, path, f"{key}.")
        else:
            yield key, value


def _is_section(key: str) -> bool:
    return any(known.startswith(f"{key}.") for known in _DEFAULTS)


def _parse(key: str, value: object, where: str) -> Any:
    make, default = _DEFAULTS[key]
    if value is None:
        return default
    try:
        return make(str(value))
    except (ValueError, KeyError) as error:
        kind = {int: "a whole number", float: "a number"}.get(make, "true or false")  # type: ignore[call-overload]
        raise ConfigError(f"{where}: {key} is {value!r}; expected {kind}.") from error
