from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_builder.source.load import OnnxFile
from arcface_client.errors import NoCandidateError
from photograph import face_crops
from support.exports import constant_reshape, save_for_insightface, small_arcface

from .conftest import Make


def test_the_reference_is_checked_against_the_manifest_of_what_was_built_from_it(
    make: Make, tmp_path: Path
) -> None:
    known = make("pytorch")
    known.ensure_ready()
    validation = known.diagnostics().validation
    assert (validation.reference, validation.regression_test) == ("manifest", "passed")

    unknown = make("pytorch", embedding_source=str(save_for_insightface(tmp_path, seed=5)))
    unknown.ensure_ready()
    diagnostics = unknown.diagnostics()
    assert diagnostics.validation.reference == "itself"
    assert diagnostics.validation.drift_vs_reference is None
    assert (diagnostics.model, diagnostics.version) == ("source-5", None)


def test_the_reference_is_found_in_insightfaces_own_folder(
    make: Make, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pack = tmp_path / ".insightface/models/buffalo_l"
    pack.mkdir(parents=True)
    shutil.copy(built / "source-0.onnx", pack / "w600k_r50.onnx")
    other = small_arcface()
    for place, size in ((2, 96), (3, 96)):
        other.graph.input[0].type.tensor_type.shape.dim[place].dim_value = size
    onnx.save_model(other, pack / "genderage.onnx")
    (pack / "half-a-download.onnx").write_bytes(b"no model")

    with make("pytorch", embedding_source="buffalo_l") as embedder:
        embedder.ensure_ready()
        assert embedder.diagnostics().engine_path == str(pack / "w600k_r50.onnx")

    shutil.copy(built / "source-0.onnx", pack / "again.onnx")
    with pytest.raises(
        NoCandidateError, match=r"2 recognition models \(again\.onnx, w600k_r50\.onnx\) are in"
    ):
        make("pytorch", embedding_source="buffalo_l").ensure_ready()


def test_an_assumed_preprocessing_is_warned_of_but_not_for_a_pack_or_what_a_manifest_states(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pack = tmp_path / ".insightface/models/buffalo_l"
    pack.mkdir(parents=True)
    source = save_for_insightface(tmp_path, seed=5)
    shutil.copy(source, pack / "w600k_r50.onnx")
    for known in ({}, {"embedding_source": "buffalo_l"}):
        with make("pytorch", **known) as embedder:
            embedder.ensure_ready()
    assert "assumption" not in caplog.text

    with make("pytorch", embedding_source=str(source)) as embedder:
        embedder.ensure_ready()
    assert f"{source} is given RGB, (x - 127.5) / 127.5, which is an assumption" in caplog.text


def test_a_reference_that_takes_one_crop_at_a_time_gets_them_so(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    onnx.save_model(constant_reshape(small_arcface()), path)

    with make("pytorch", embedding_source=str(path)) as embedder:
        embeddings = embedder.encode(face_crops())
        assert embedder.diagnostics().batch_size == 1

    expected = OnnxFile(path).load().embed(face_crops())
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("buffalo_l", r"no pack buffalo_l at .*models/buffalo_l\. Give .*--reference"),
        ("{built}/models", r"models is a folder; give an ONNX file"),
        ("gone.pth", r"There is no file gone\.pth; give an ONNX file"),
        ("gone.onnx", r"There is no file gone\.onnx; give an ONNX file"),
        ("{built}/models/small_onnx/1/model.onnx", r"is a serving graph; as embedding\.source"),
    ],
)
def test_a_reference_that_cannot_be_used_is_reported_with_what_to_do(
    make: Make, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NoCandidateError, match=reason):
        make("pytorch", embedding_source=source.format(built=built)).ensure_ready()
