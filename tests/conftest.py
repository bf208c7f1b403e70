"""What every test shares: an environment that does not reach in, and the versions in the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import pytest

_PACKAGES = ("numpy", "onnx", "onnxruntime", "tritonclient", "grpcio", "protobuf", "nvidia-pytriton")


def pytest_report_header() -> str:
    return ", ".join([f"python {platform.python_version()}", *map(_package_version, _PACKAGES)])


def _package_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} -"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees neither the user's settings nor a proxy between it and its own server."""
    for name in os.environ:
        if name.startswith("ARCFACE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
