"""Serving graphs to make plans of, made once."""

from __future__ import annotations

from types import ModuleType

import onnx
import pytest

from arcface_builder.serving_graph import serving_graph
from arcface_builder.source_model import SourceModel
from arcface_builder.sources import OnnxFile
from exports import small_arcface


@pytest.fixture(scope="session")
def r18_graph(r18: SourceModel) -> bytes:
    """The serving graph of a synthetic IResNet-18."""
    return bytes(serving_graph(r18.mended, r18.normalisation, metadata={}).SerializeToString())


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """A network with every structure of an IResNet's, of the size of a photograph."""
    path = tmp_path_factory.mktemp("small") / "source.onnx"
    onnx.save_model(small_arcface(), path)
    return OnnxFile(path).load()


@pytest.fixture(scope="session")
def small_graph(small_source: SourceModel) -> bytes:
    """Its serving graph."""
    graph = serving_graph(small_source.mended, small_source.normalisation, metadata={})
    return bytes(graph.SerializeToString())


@pytest.fixture(scope="session")
def trt() -> ModuleType:
    """TensorRT 11's API, which builds without a GPU."""
    reason = "tensorrt_rtx is not installed (it has wheels for Linux on x86-64 alone)"
    return pytest.importorskip("tensorrt_rtx", reason=reason)  # type: ignore[no-any-return]
