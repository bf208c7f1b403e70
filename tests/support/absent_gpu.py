"""A GPU for tests on a machine that has none."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arcface_builder.check.accuracy import another_model
from arcface_builder.graph.edit import session
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.inspect import LayerPrecisions
from arcface_client.runtimes.base import Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime


@dataclass(frozen=True)
class AbsentGpu(Gpu):
    """A GPU that is not there: TensorRT-RTX builds for it, and ONNX Runtime runs in place of it."""

    graph: bytes = b""
    runs_in: str = "fp16"
    wrong_below: int = 0  # plans of so few bytes embed as another model does

    def inspect(self, plan: bytes) -> tuple[LayerPrecisions, ...]:
        return (LayerPrecisions({self.runs_in: 2}, {self.runs_in: 2}),)

    def load(self, path: Path) -> AbstractContextManager[Runtime]:
        return closing(OnnxRuntime(path, session(self._runs(path.stat().st_size))))

    def _runs(self, plan_bytes: int) -> bytes:
        return another_model(self.graph) if plan_bytes < self.wrong_below else self.graph


def unable(gpu: AbsentGpu) -> AbsentGpu:
    """The same GPU with a TensorRT that must not be asked to build."""

    class Unable(AbsentGpu):
        @property
        def free_mb(self) -> Any:
            raise AssertionError("a plan is built")

    return Unable(**{field.name: getattr(gpu, field.name) for field in fields(gpu)})
