"""Random networks: what ONNX Runtime runs is built and embeds as its file does, or is refused by name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, assume, given, settings

from arcface_builder.build import build
from arcface_builder.check.crops import face_like, noise
from arcface_builder.errors import ParityError, SourceError
from arcface_builder.graph.edit import session
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops, Embeddings
from arcface_client.runtimes.onnxruntime import RUN_ERRORS
from fuzz.networks import Network, networks

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
"""`make fuzz` sets 2000."""

CROPS = np.concatenate([face_like(2, seed=3), noise(2, seed=3)])


def reference(network: Network, crops: Crops) -> Embeddings | None:
    """What a caller of the file gets, computed with ONNX Runtime alone; None if it does not run."""
    planes = (
        np.rint(network.caller.apply(crops)) if network.dtype is np.uint8 else network.caller.apply(crops)
    )
    if network.channels == "BGR":
        planes = planes[:, ::-1]
    if network.channels_last:
        planes = planes.transpose(0, 2, 3, 1)
    planes = np.ascontiguousarray(planes.astype(network.dtype))
    try:
        loaded = session(network.model.SerializeToString())
        name = loaded.get_inputs()[0].name
        raw = in_steps(lambda part: loaded.run(None, {name: part})[0], planes, network.batch)
    except RUN_ERRORS:
        return None
    rows = raw.reshape(len(crops), -1).astype(np.float64)
    unit: Embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def in_steps(run: Callable[[Any], Any], rows: npt.NDArray[Any], batch: int | None) -> npt.NDArray[Any]:
    """Run rows in batches of the one size that is possible."""
    step = batch or len(rows)
    return np.concatenate([run(rows[start : start + step]) for start in range(0, len(rows), step)])


def tells_apart(network: Network, embeddings: Embeddings) -> bool:
    """Whether it embeds other crops, and other channel orders, differently enough for a comparison."""
    swapped = reference(network, np.ascontiguousarray(CROPS[..., ::-1]))
    assert swapped is not None
    others = embeddings @ embeddings.T - 2 * np.eye(len(embeddings))
    return bool(others.max() < 0.9995 and (embeddings * swapped).sum(axis=1).min() < 0.9995)


@pytest.mark.timeout(0)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(network=networks())
def test_any_network_embeds_as_its_file_does_or_is_refused_by_the_name_of_a_node(network: Network) -> None:
    expected = reference(network, CROPS)
    assume(expected is not None and np.isfinite(expected).all())
    assert expected is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        onnx.save_model(network.model, path)
        source = OnnxFile(path)
        if network.stated:
            source = replace(source, normalisation=network.caller, color=network.channels.lower())
        try:
            built = build(source, name="m", repository=Path(folder, "models"))
        except SourceError as error:
            assert any(node.name in str(error) for node in network.model.graph.node), str(error)
            return
        except ParityError as error:  # a comparison would prove nothing
            assert not tells_apart(network, expected), str(error)
            return
        served = onnxruntime.InferenceSession(built.path / "model.onnx", providers=["CPUExecutionProvider"])
        batch = served.get_inputs()[0].shape[0]
        fixed = batch if isinstance(batch, int) else None
        got = in_steps(lambda part: served.run(None, {"image": part})[0], CROPS, fixed)
    np.testing.assert_allclose(got, expected, rtol=0, atol=network.tolerance)
