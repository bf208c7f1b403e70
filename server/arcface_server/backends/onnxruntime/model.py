"""Triton's ``onnxruntime`` backend, where the native backend is not installed.

This file alone is copied beside Triton's Python backend, so it only has the form that Triton expects. The
rest is imported from the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton_python_backend_utils as pb_utils

from arcface_server.backends.config import read_instance_config
from arcface_server.backends.requests import joined, respond
from arcface_server.backends.sessions import load_model


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; Triton's repository index shows an error as the reason."""
        config = read_instance_config(args)
        self._runtime = load_model(args["model_name"], config, pb_utils.Logger)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(pb_utils, joined(self._runtime.embed), requests)

    def finalize(self) -> None:
        """Free the model."""
        self._runtime.close()
