"""What can be compared: names of models and files, and InsightFace's own code as the reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from insightface.model_zoo.arcface_onnx import ArcFaceONNX

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.errors import DeploymentError, ModelNotFoundError
from arcface_client.evaluation.fit import find_fits
from arcface_client.evaluation.samples import generated_samples
from arcface_client.evaluation.scores import largest_drift
from arcface_client.evaluation.systems import System, open_reference, siblings_on
from arcface_client.models.golden import golden_crops
from arcface_client.models.normalisation import PYTORCH, UNIT, Pixels
from arcface_client.models.repository import LocalModels
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.triton.status import ModelStatus, ServerStatus
from support.exports import (
    Export,
    as_is,
    bytes_channels_last,
    constant_reshape,
    gathered_channels,
    half_weights,
    mxnet,
    pytorch_pack,
    small_arcface,
)

CROPS = generated_samples(10).crops

SERVER = ServerStatus(
    "host:8001",
    "2.51.0",
    ready=True,
    models=[
        ModelStatus("face_onnx", 1, "READY", ""),
        ModelStatus("face_onnx", 2, "READY", ""),
        ModelStatus("face_onnx", 3, "UNAVAILABLE", "no memory"),
        ModelStatus("face_trt", 1, "READY", ""),
        ModelStatus("face_trt", 2, "READY", ""),
        ModelStatus("face_trt_onnx", 1, "READY", ""),
        ModelStatus("broken_onnx", None, "", ""),
    ],
)


def test_siblings_are_the_ready_ones_with_the_newest_onnx_model_first() -> None:
    assert siblings_on(SERVER, "face") == ["face_onnx:2", "face_onnx:1", "face_trt:2", "face_trt:1"]


@pytest.mark.parametrize("name", ["other", "broken"])
def test_the_error_for_no_ready_sibling_names_what_is_ready(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"face_onnx:1, face_onnx:2, face_trt:1, .*Name the models"):
        siblings_on(SERVER, name)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], str]:
    def save(model: onnx.ModelProto) -> str:
        onnx.save(model, tmp_path / "source.onnx")
        return str(tmp_path / "source.onnx")

    return save


def opened(path: str, stack: ExitStack, pixels: Pixels | None = None, models: Path = Path("none")) -> System:
    return open_reference(path, pixels, LocalModels(models), stack)


@pytest.mark.parametrize("export", [as_is, constant_reshape, mxnet])
def test_the_reference_gives_insightfaces_own_features_scaled_to_length_one(
    export: Export, save: Callable[[onnx.ModelProto], str]
) -> None:
    path = save(export(small_arcface()))
    insightface = ArcFaceONNX(path)
    features = np.concatenate([insightface.get_feat(crop) for crop in CROPS])
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    with ExitStack() as stack:
        reference = opened(path, stack)
        assert reference.name == "InsightFace source.onnx"
        np.testing.assert_allclose(reference.embed(CROPS), expected, atol=1e-6)


def test_a_wrong_shape_in_the_file_is_no_warning_of_onnx_runtime(
    save: Callable[[onnx.ModelProto], str], capfd: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        opened(save(pytorch_pack(small_arcface())), stack).embed(CROPS)
    assert capfd.readouterr().err == ""


def batch_of_two(model: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    return model


def embedding_and_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Two outputs, as AdaFace's networks have."""
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("ReduceL2", [output.name], ["norm"], axes=[1]))
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("norm", onnx.TensorProto.FLOAT, ["N", 1]))
    return model


@pytest.mark.parametrize("export", [batch_of_two, embedding_and_norm])
def test_a_source_with_a_fixed_batch_or_more_outputs_is_a_reference_too(
    export: Export, save: Callable[[onnx.ModelProto], str]
) -> None:
    with ExitStack() as stack:
        expected = opened(save(small_arcface()), stack).embed(CROPS)
        embeddings = opened(save(export(small_arcface())), stack).embed(CROPS[:5])
    assert largest_drift(embeddings, expected[:5]) < 1e-9


@pytest.mark.parametrize("export", [bytes_channels_last, half_weights, gathered_channels, mxnet])
def test_any_source_that_builds_is_a_reference_that_agrees_with_what_was_built(
    export: Export, save: Callable[[onnx.ModelProto], str], tmp_path: Path
) -> None:
    path = save(export(small_arcface()))
    built = build(OnnxFile(Path(path)), name="any", repository=tmp_path / "models")
    expected = OnnxRuntime(built.path / "model.onnx").embed(CROPS)
    with ExitStack() as stack:
        embeddings = opened(path, stack, models=tmp_path / "models").embed(CROPS)
    assert largest_drift(embeddings, expected) < (1e-3 if export is half_weights else 1e-9)


def test_a_source_with_weights_behind_links_is_given_what_its_manifest_says(tmp_path: Path) -> None:
    """As torch's exporter writes files, and Hugging Face's cache keeps them."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    onnx.save(small_arcface(), blobs / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    for name in ("m.onnx", "w"):
        (folder / name).symlink_to(blobs / name)
    built = build(OnnxFile(folder / "m.onnx", UNIT, "bgr"), name="any", repository=tmp_path / "models")
    expected = OnnxRuntime(built.path / "model.onnx").embed(CROPS)
    with ExitStack() as stack:
        reference = opened(str(folder / "m.onnx"), stack, models=tmp_path / "models")
        assert str(reference.pixels) == "BGR, x / 255"
        assert largest_drift(reference.embed(CROPS), expected) < 1e-9


def test_a_model_that_was_built_with_other_pixels_agrees_best_with_those(
    save: Callable[[onnx.ModelProto], str],
) -> None:
    with ExitStack() as stack:
        reference = opened(save(small_arcface()), stack)
        assert reference.embed_as is not None
        swapped, unit = (
            reference.embed_as(golden_crops(), pixels)
            for pixels in (Pixels("BGR", PYTORCH), Pixels("RGB", UNIT))
        )
        random = np.random.default_rng(0).standard_normal(swapped.shape).astype(np.float32)
        fits = find_fits(reference, {"swapped": swapped, "unit": unit, "other": random})
    assert [fit.best for fit in fits[:2]] == ["BGR, (x - 127.5) / 127.5", "RGB, x / 255"]
    assert all(fit.drift_best < 1e-9 < fit.drift_given for fit in fits[:2])
    assert "build the model again with --color rgb --normalisation 127.5,127.5;" in str(fits[0])
    assert fits[2].drift_best > 0.5


def test_a_checkpoint_is_no_reference(tmp_path: Path) -> None:
    (tmp_path / "source.pt").touch()
    told = pytest.raises(DeploymentError, match=r"source\.pt is a checkpoint, .*: build it")
    with ExitStack() as stack, told:
        opened(str(tmp_path / "source.pt"), stack)
