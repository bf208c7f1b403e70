"""Triton's ``openvino`` backend, where the native backend is not installed.

This file alone is copied beside Triton's Python backend, so it only has the form that Triton expects. The
rest is imported from the installed packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton_python_backend_utils as pb_utils

from arcface_client.errors import ConfigError, require
from arcface_server.backends.config import read_instance_config
from arcface_server.backends.requests import joined, respond


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; Triton's repository index shows an error as the reason."""
        config = read_instance_config(args)
        if config.device != "CPU":
            raise ConfigError(
                f"{args['model_name']} asks for KIND_{config.device}; OpenVINO runs on the CPU. Set "
                "`kind: KIND_CPU` in its instance_group."
            )
        openvino = require(
            "arcface_client.runtimes.openvino",
            extra="openvino",
            purpose=f"{args['model_name']} on this server",
        )
        self._runtime = openvino.OpenVino(
            config.version_folder / (config.filename or "model.onnx"),
            threads=config.integer("INFERENCE_NUM_THREADS", default=0),
            streams=config.integer("NUM_STREAMS", default=1),
            precision=config.parameters.get("INFERENCE_PRECISION_HINT"),
        )
        pb_utils.Logger.log_info(
            f"{args['model_name']}: OpenVINO {self._runtime.version} computes in {self._runtime.precision}; "
            f"for int8 this processor has {self._runtime.instructions or 'nothing'}"
        )

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(pb_utils, joined(self._runtime.embed), requests)

    def finalize(self) -> None:
        """Free the model."""
        self._runtime.close()
