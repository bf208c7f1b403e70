from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.graph.quantise import quantise
from arcface_builder.source.load import OnnxFile
from arcface_client.contract import Crops
from arcface_client.errors import DeploymentError, MissingExtraError
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.runtimes import base
from arcface_client.runtimes.base import has_avx2
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.runtimes.openvino import OpenVino, check_version
from support.exports import small_arcface


@pytest.mark.parametrize(
    ("precision", "streams", "drift"), [("fp32", 1, 1e-6), ("fp32", 3, 1e-6), (None, 1, 1e-3)]
)
def test_embeddings_are_those_of_onnx_runtime_in_any_batch(
    model: Path, crops: Crops, precision: str | None, streams: int, drift: float
) -> None:
    expected = OnnxRuntime(model).embed(crops)
    runtime = OpenVino(model, precision=precision, streams=streams)

    for size in (len(crops), 1, 7):
        embeddings = runtime.embed(crops[:size])
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        assert largest_drift(expected[:size], embeddings) <= drift
    assert runtime.precision == precision or precision is None
    runtime.close()


def test_it_computes_in_bfloat16_where_the_processor_has_that_and_says_so(model: Path) -> None:
    has_bf16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert OpenVino(model).precision == ("bf16" if has_bf16 else "fp32")


def test_callers_side_by_side_each_get_their_own_rows(model: Path, crops: Crops) -> None:
    runtime = OpenVino(model)
    expected = runtime.embed(crops)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda at: runtime.embed(crops[at : at + 1])[0], range(len(crops))))
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_crops_that_may_not_be_written_are_embedded(model: Path, crops: Crops) -> None:
    frozen = crops.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(OpenVino(model).embed(frozen), OpenVino(model).embed(crops))


def test_a_batch_that_does_not_fit_the_model_is_told_and_the_next_one_is_embedded(
    model: Path, crops: Crops
) -> None:
    runtime = OpenVino(model)
    with pytest.raises(DeploymentError, match=r"failed on a batch of 2: Can't set the input .*incompatible"):
        runtime.embed(np.zeros((2, 5), np.uint8))
    assert runtime.embed(crops[:1]).shape == (1, 512)


def test_an_openvino_that_is_too_old_is_refused() -> None:
    check_version("2026.4.1")
    check_version("2025.4.0")
    with pytest.raises(MissingExtraError, match=r"2025\.3\.0 is installed, and 2025\.4 or newer is needed"):
        check_version("2025.3.0")


@pytest.fixture
def int8_model(tmp_path: Path) -> Path:
    serving_graph = build(small_source(tmp_path), name="small", repository=tmp_path).path / "model.onnx"
    quantised = quantise(serving_graph.read_bytes(), faces.face_like(40))
    (tmp_path / "int8.onnx").write_bytes(quantised.content)
    return tmp_path / "int8.onnx"


def small_source(folder: Path) -> OnnxFile:
    onnx.save(small_arcface(channels=32), folder / "source.onnx")
    return OnnxFile(folder / "source.onnx")


def test_a_quantised_graph_is_computed_in_int8_and_a_processor_that_gains_nothing_by_it_is_told(
    int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crops = golden_crops()
    expected = OnnxRuntime(int8_model).embed(crops)

    runtime = OpenVino(int8_model)

    assert runtime.precision in ("int8", "mixed")  # OpenVINO leaves some convolutions wide
    assert largest_drift(expected, runtime.embed(crops)) < 1e-3

    (tmp_path / "proc").mkdir()
    for flags, instructions in (
        ("avx2", ""),
        ("avx2 avx_vnni", "VNNI"),
        ("avx2 avx512_vnni amx_int8", "AMX"),
    ):
        (tmp_path / "proc/cpuinfo").write_text(f"flags : {flags}\n")
        monkeypatch.setattr(base, "_ROOT", tmp_path)
        caplog.clear()
        assert OpenVino(int8_model).instructions == instructions
        assert ("has neither VNNI nor AMX: " in caplog.text) == (not instructions)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2 bmi2\n", True),
        ("flags\t\t: fpu sse4_2 avx\n", False),
        ("processor : 0\nFeatures : fp asimd\n", True),
    ],
    ids=["with", "without", "Arm"],
)
def test_a_processor_without_avx2_is_refused(
    cpuinfo: str, expected: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(base, "_ROOT", tmp_path)
    assert has_avx2() is expected
    if not expected:
        with pytest.raises(DeploymentError, match="only on processors with AVX2, and this one lacks it"):
            OpenVino(model)


def test_importing_it_records_and_sends_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import arcface_client.runtimes.openvino"],
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
