"""Triton's ``tensorrt`` backend, where the native one is not at hand.

Triton copies nothing but this file beside its Python backend, so all it holds is the shape that
Triton wants; the rest is imported from the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton_python_backend_utils as pb_utils

from arcface_server.backends.config import read_instance_config
from arcface_server.backends.plans import load_plan
from arcface_server.backends.responses import respond


class TritonPythonModel:
    """One instance of a model, on one GPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the plan for this GPU; an error here is the reason that Triton's repository index shows."""
        self._runtime = load_plan(args["model_name"], read_instance_config(args))

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(self._runtime.embed, requests)

    def finalize(self) -> None:
        """Free the plan."""
        self._runtime.close()
