"""Models to make plans of on a real GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcface_builder.build import build
from arcface_builder.compile import PlanRequest
from arcface_builder.repository.plans import AddedPlan
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.source.load import Source
from arcface_builder.trt.options import BuildOptions
from arcface_client.contract import Crops
from arcface_client.models.repository import LocalOnnx


@dataclass(frozen=True)
class Model:
    """An ONNX model in a repository, and what it was built from.

    Attributes:
        repository: The repository.
        onnx: The model in it.
        source: What it was built from.
        crops: What plans are checked on; None for the gate's own crops.
    """

    repository: ModelRepository
    onnx: LocalOnnx
    source: Source
    crops: Crops | None = None

    def request(self, options: BuildOptions, **changes: Any) -> PlanRequest:
        """Ask for a plan of it."""
        values: dict[str, Any] = {
            "onnx": self.onnx,
            "options": options,
            "calibration": self.crops,
            "source": self.source,
        }
        return PlanRequest(**(values | changes))


def publish(source: Source, name: str, folder: Path, crops: Crops | None = None) -> Model:
    """Build the ONNX model of a source."""
    build(source, name=name, repository=folder)
    repository = ModelRepository(folder)
    return Model(repository, find_onnx(repository, name), source, crops)


def build_seconds(compiled: AddedPlan) -> float:
    """How long the build of a plan took, as its manifest says."""
    seconds = compiled.manifest.build_seconds
    assert seconds is not None
    return seconds
