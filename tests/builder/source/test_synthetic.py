from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from insightface.model_zoo.arcface_onnx import ArcFaceONNX

from arcface_builder.check.accuracy import TOLERANCE
from arcface_builder.check.crops import face_like, noise
from arcface_builder.cli.app import main
from arcface_builder.errors import OptionError
from arcface_builder.graph.edit import session
from arcface_builder.source import synthetic
from arcface_builder.source.inspect import inspect
from arcface_builder.source.load import OnnxFile, Synthetic, build_arguments, located
from arcface_builder.source.model import SourceModel
from arcface_client.contract import Crops
from arcface_client.runtimes.onnxruntime import RUN_ERRORS
from photograph import face_crops
from support.exports import small_arcface

FP16_MAX = 65504


@pytest.fixture(scope="module")
def r18() -> SourceModel:
    return Synthetic("r18").load()


@pytest.mark.parametrize(
    ("crops", "mean"),
    [
        pytest.param(noise(12, seed=99), 0.2, id="noise"),
        pytest.param(face_like(12, seed=99), 0.2, id="face-like"),
        # They share light and background, and are unlike what the statistics were measured on.
        pytest.param(face_crops(), 0.2, id="real faces of one photograph"),
    ],
)
def test_different_images_land_far_apart(crops: Crops, mean: float, r18: SourceModel) -> None:
    embeddings = r18.embed(crops)

    cosines = (embeddings @ embeddings.T)[np.triu_indices(len(crops), 1)]

    assert cosines.mean() < mean
    assert cosines.max() < 0.6


def test_a_seed_gives_the_same_embeddings_on_every_machine(r18: SourceModel) -> None:
    (embedding,) = r18.embed(face_like(1, seed=77))

    # Recorded on another machine.
    expected = [-0.010517764, 0.002078052, -0.065250389, -0.033071347, -0.054317452, 0.037981331]
    np.testing.assert_allclose(embedding[:6], expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("thin")
def test_uneven_channels_give_the_same_embeddings_from_channels_of_very_different_sizes() -> None:
    even, uneven = Synthetic("r18"), Synthetic("r18", uneven_channels=True)
    crops = face_like(2, seed=3)

    np.testing.assert_allclose(uneven.load().embed(crops), even.load().embed(crops), rtol=0, atol=2e-4)

    weights = synthetic.with_uneven_channels(synthetic.synthetic_weights("r18", 0), "r18", 0)
    assert weights["layer1.1.bn2.weight"].max() > 10 * weights["layer1.1.bn2.weight"].min()
    assert located(uneven.location()) == uneven
    assert build_arguments(uneven) == ["--synthetic=r18", "--seed=0", "--uneven-channels"]


@pytest.mark.faults
def test_ctrl_c_ends_the_calibration_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def press() -> None:
        time.sleep(0.2)  # the pass has begun, and takes many seconds
        os.kill(os.getpid(), signal.SIGINT)

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def run(self, *arguments: Any) -> Any:
            Thread(target=press).start()
            try:
                return super().run(*arguments)
            except RUN_ERRORS as error:
                ended.append(str(error))
                raise

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(KeyboardInterrupt):
        synthetic.synthetic_weights("r18", 0)

    (error,) = ended
    assert "terminate flag" in error


def test_activations_and_weights_stay_far_inside_fp16(r18: SourceModel) -> None:
    model = r18.network.model.clone()
    activations = [node.outputs[0] for node in model.graph]
    for value in activations:
        value.dtype = ir.DataType.FLOAT
    model.graph.outputs[:] = activations
    crops = np.concatenate([noise(2, seed=5), face_like(2, seed=5), face_crops()[:2]])

    results = session(model).run(None, {"input": r18.caller.apply(crops)})

    assert max(np.abs(result).max() for result in results) < FP16_MAX / 100


@pytest.mark.usefixtures("thin")
def test_what_is_built_from_it_is_labelled_and_the_same_for_a_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["build", "--name", "m", "--repository", str(tmp_path), "--synthetic", "r18", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    origin = report["source"]
    assert (origin["synthetic"], origin["depth"], origin["seed"]) == (True, "r18", 0)
    assert origin["sha256"] == Synthetic("r18", seed=0).load().origin.sha256
    assert origin["sha256"] != Synthetic("r18", seed=1).load().origin.sha256
    assert report["compared_with"] == "source file"
    assert inspect(Path(report["path"], "model.onnx")).origin.synthetic
    assert "it cannot tell faces apart" in caplog.text


def test_its_file_keeps_the_label(r18: SourceModel, tmp_path: Path) -> None:
    labels = {entry.key: entry.value for entry in r18.proto.metadata_props}
    model = small_arcface()
    onnx.helper.set_model_props(model, labels)
    onnx.save_model(model, tmp_path / "source.onnx")

    inspection = inspect(tmp_path / "source.onnx")

    assert "weights     synthetic r18, seed 0: they recognise no one" in inspection.to_text()
    assert OnnxFile(tmp_path / "source.onnx").load().origin.synthetic


def test_the_serving_graph_equals_insightface_on_the_saved_source(r18: SourceModel, tmp_path: Path) -> None:
    r18.save(tmp_path / "r18.onnx")
    insightface = ArcFaceONNX(str(tmp_path / "r18.onnx"))
    crops = np.concatenate([face_crops(), noise(2)])
    raw = insightface.get_feat(list(crops))
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)

    graph = r18.serving_graph()
    (embeddings,) = session(graph.SerializeToString()).run(None, {"image": crops})

    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=TOLERANCE)


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(
        OptionError, match="Depth 'r42' is unknown; expected one of r18, r34, r50, r100, r200"
    ):
        Synthetic("r42").load()
