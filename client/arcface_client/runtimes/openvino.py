"""OpenVINO: the serving graph on the CPU, in bfloat16 where the processor has it, in int8 if quantised."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from ..contract import Crops, Embeddings, TensorSpec, check_tensors
from ..errors import DeploymentError, MissingExtraError
from .base import has_avx2, int8_instructions, usable_cores

# As it is imported, OpenVINO tells its maker so, unless the package that does this is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

_log = logging.getLogger(__name__)

LEAST_VERSION: Final = (2025, 4)
"""Intel's 2025.3 crashes on large ArcFace models."""

_TRITON_TYPES: Final = {"u8": "UINT8", "f32": "FP32"}
_PRECISIONS: Final = {"f32": "fp32", "f16": "fp16"}  # others have the same name here


class OpenVino:
    """A serving graph loaded with OpenVINO, on the CPU. Safe to share between threads.

    Args:
        model_path: ONNX file with the contract's tensors.
        threads: Threads in all; 0 is one for each core that this process can keep busy.
        streams: Parts of a batch that run side by side, with their share of the threads each. They have the
            weights in common.
        precision: What to compute in, "fp32" or "bf16"; None is bfloat16 where the processor has it, and
            float32 elsewhere (float16 on Arm). The convolutions of a quantised graph are in int8 besides.

    Attributes:
        precision: What it computes in: "bf16", "fp16" or "fp32"; "int8" if all convolutions but the first are
            in int8, "mixed" if some are.
        instructions: What the processor has for int8: "AMX", "VNNI", or "".
        device: The processor's name.
        version: OpenVINO's version, for example "2026.4.1".

    Raises:
        DeploymentError: The file is missing, or OpenVINO cannot load it on this processor.
        MissingExtraError: The installed OpenVINO is too old.
        ContractError: The model has other tensors.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        threads: int = 0,
        streams: int = 1,
        precision: str | None = None,
    ) -> None:
        path = Path(model_path)
        if not path.is_file():
            raise DeploymentError(f"No model file at {path}; build one with `arcface-builder build`.")
        self._lock = Lock()
        self.version: str = openvino.__version__.partition("-")[0]
        check_version(self.version)
        if not has_avx2():
            raise DeploymentError("OpenVINO is used only on processors with AVX2, and this one lacks it.")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            # A pinned thread waits as long as another process, such as Triton, uses its core.
            "ENABLE_CPU_PINNING": False,
        }
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = "f32" if precision == "fp32" else precision
        try:
            core = openvino.Core()
            graph = core.read_model(path)
            check_tensors(str(path), _specs(graph.inputs), _specs(graph.outputs))
            model = core.compile_model(graph, "CPU", settings)
            self._requests = [model.create_infer_request() for _ in range(streams)]
            self.device: str = core.get_property("CPU", "FULL_DEVICE_NAME")
            computes_in = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        except RuntimeError as error:
            raise DeploymentError(f"OpenVINO cannot load {path}: {_reason(error)}") from error
        self.precision: str = _int8(model) or _PRECISIONS.get(computes_in, computes_in)
        self.instructions: str = int8_instructions() or ""
        if self.precision in ("int8", "mixed") and int8_instructions() == "":
            _log.warning(
                "%s has neither VNNI nor AMX: %s computes in %s, and not faster than in float32.",
                self.device,
                path,
                self.precision,
            )

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            DeploymentError: OpenVINO failed on the batch.
        """
        with self._lock:
            requests = self._requests[: len(crops)]
            try:
                for request, part in zip(requests, np.array_split(crops, len(requests)), strict=True):
                    request.set_input_tensor(openvino.Tensor(part))
                    request.start_async()
                for request in requests:
                    request.wait()
            except RuntimeError as error:
                raise DeploymentError(
                    f"OpenVINO failed on a batch of {len(crops)}: {_reason(error)}"
                ) from error
            return np.concatenate([request.get_output_tensor().data for request in requests])

    def close(self) -> None:
        """Free the model."""
        del self._requests


def check_version(version: str) -> None:
    """Check the version of the installed OpenVINO, for example "2026.4.1".

    Raises:
        MissingExtraError: It is too old.
    """
    major, minor = re.findall(r"\d+", version)[:2]
    if (int(major), int(minor)) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise MissingExtraError(
            f"OpenVINO {version} is installed, and {least} or newer is needed: "
            "pip install --upgrade 'arcface-triton[openvino]'"
        )


def _int8(model: Any) -> str:
    """What OpenVINO made of the convolutions: "int8", "mixed", or "" without any in int8."""
    nodes = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    convolutions = [node for node in nodes if node["layerType"].astype(str) == "Convolution"]
    # The first one, of three channels, never is in int8.
    in_int8 = [node["runtimePrecision"].astype(str) in ("i8", "u8") for node in convolutions[1:]]
    return "int8" if in_int8 and all(in_int8) else "mixed" if any(in_int8) else ""


def _specs(ports: Sequence[Any]) -> list[TensorSpec]:
    specs = []
    for port in ports:
        # A batch dimension that is fixed to a number stays in the shape, which then breaks the contract.
        batch, *shape = (-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
        kind = port.get_element_type().get_type_name()
        spec = tuple(shape if batch == -1 else [batch, *shape])
        specs.append((port.get_any_name(), _TRITON_TYPES.get(kind, kind), spec))
    return specs


def _reason(error: RuntimeError) -> str:
    """OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not re.match("Exception from |Check '.*' failed at ", line)]
    return " ".join(told) or str(error)
