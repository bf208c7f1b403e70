"""What a manifest says of the tools that built a model."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

_TOOLS: Final = ("arcface-triton", "numpy", "onnx", "onnx-ir", "onnxruntime")


def tool_versions() -> dict[str, str]:
    """Versions of what builds models."""
    versions = {"python": platform.python_version()}
    for package in _TOOLS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "unknown"
    return versions
