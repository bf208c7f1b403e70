"""Triton's ``onnxruntime`` backend, where the native backend is not installed.

This file alone is copied beside Triton's Python backend, so it only has the form that Triton expects. The
rest is imported from the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton_python_backend_utils as pb_utils

from arcface_client.errors import ConfigError
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_session
from arcface_server.backends.config import read_instance_config
from arcface_server.backends.requests import joined, respond


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; Triton's repository index shows an error as the reason."""
        config = read_instance_config(args)
        if config.device != "CPU":
            raise ConfigError(
                f"{args['model_name']} asks for KIND_{config.device}; this backend runs on the CPU. Set "
                "`kind: KIND_CPU` in its instance_group, or serve it with NVIDIA's container."
            )
        path = config.version_folder / (config.filename or "model.onnx")
        session = open_session(
            path,
            intra_op_threads=config.integer("intra_op_thread_count", default=0),
            inter_op_threads=config.integer("inter_op_thread_count", default=0),
            entries={name: value for name, value in config.parameters.items() if name.startswith("session.")},
        )
        self._runtime = OnnxRuntime(path, session)

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(pb_utils, joined(self._runtime.embed), requests)

    def finalize(self) -> None:
        """Free the model."""
        self._runtime.close()
