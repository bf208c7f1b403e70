"""Triton's ``tensorrt`` backend, where the native backend is not installed.

This file alone is copied beside Triton's Python backend, so it only has the form that Triton expects. The
rest is imported from the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton_python_backend_utils as pb_utils

from arcface_server.backends.config import read_instance_config
from arcface_server.backends.plans import load_plan
from arcface_server.backends.requests import joined, respond


class TritonPythonModel:
    """One instance of a model, on one GPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the plan for this GPU; Triton's repository index shows an error as the reason."""
        self._runtime = load_plan(args["model_name"], read_instance_config(args))

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(pb_utils, joined(self._runtime.embed), requests)

    def finalize(self) -> None:
        """Free the plan."""
        self._runtime.close()
