"""The siblings for OpenVINO and cuDNN in this process; what needs a GPU is in tests/gpu."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.cli.app import main
from arcface_client.contract import Crops
from arcface_client.errors import NoCandidateError
from arcface_client.models.golden import largest_drift

from .conftest import Make


@pytest.fixture
def with_sibling(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with ``small_onnx`` and ``small_openvino``."""
    monkeypatch.setattr(faces, "LEAST_CROPS", 32)
    assert main(["compile", "--name", "small", "--repository", str(models), "--runtime", "openvino"]) == 0
    return models


def test_it_embeds_as_onnx_runtime_does_and_says_in_which_precision(
    make: Make, with_sibling: Path, crops: Crops
) -> None:
    with make("openvino", embedding_model_repository=with_sibling) as embedder:
        embeddings, served = embedder.encode(crops, return_source=True)
        said = embedder.diagnostics()
    with make("onnxruntime", embedding_model_repository=with_sibling) as onnx:
        assert largest_drift(onnx.encode(crops), embeddings) < 1e-3

    assert [(one.backend, one.model, one.version) for one in served.sources] == [
        ("openvino", "small_openvino", 1)
    ]
    assert not served.fell_back
    assert said.precision in ("bf16", "fp16", "fp32")
    assert said.validation.regression_test == "passed"


@pytest.mark.parametrize(
    ("runtime", "harm", "reason"),
    [
        *(
            (runtime, harm, reason.format(runtime))
            for runtime in ("openvino", "cudnn")
            for harm, reason in (
                ("no sibling", r"no small_{0} in .* Run `arcface-builder compile .* --runtime {0}`"),
                ("not installed", r"needs the package {0}: pip install 'arcface-triton\[{0}\]'"),
            )
        ),
        ("openvino", "another file", r"model\.onnx has SHA-256 .*; its manifest says "),
        ("openvino", "another release", r"describes what was made from an ONNX model with SHA-256 1{12}"),
    ],
)
def test_where_it_cannot_be_used_onnx_runtime_serves_and_the_reason_is_told(
    runtime: str,
    harm: str,
    reason: str,
    make: Make,
    with_sibling: Path,
    crops: Crops,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = with_sibling / f"small_{runtime}/1/model.onnx"
    record = with_sibling / f"small_{runtime}-1.manifest.json"
    if runtime == "cudnn":  # as it is compiled on a machine with a GPU
        (with_sibling / "small_openvino").rename(file.parents[1])
        made = (with_sibling / "small_openvino-1.manifest.json").read_text()
        record.write_text(made.replace("openvino", "cudnn"))
    if harm == "no sibling":
        file.parents[1].rename(with_sibling.parent / "away")
    elif harm == "not installed":
        module = {"openvino": "openvino", "cudnn": "cudnn.runtime"}[runtime]
        monkeypatch.delitem(sys.modules, f"arcface_client.runtimes.{module}", raising=False)
        monkeypatch.setitem(sys.modules, runtime, None)
    elif harm == "another file":
        file.write_bytes(file.read_bytes() + b" ")
    else:
        text = record.read_text()
        sha256 = text.partition('"onnx_sha256": "')[2][:64]
        record.write_text(text.replace(f'"onnx_sha256": "{sha256}', f'"onnx_sha256": "{"1" * 64}'))

    with make(runtime, embedding_model_repository=with_sibling) as embedder:
        _, served = embedder.encode(crops, return_source=True)
    assert [one.backend for one in served.sources] == ["onnxruntime"]
    assert served.fell_back
    with (
        make(runtime, embedding_model_repository=with_sibling, allow_cpu_fallback=False) as alone,
        pytest.raises(NoCandidateError, match=reason),
    ):
        alone.ensure_ready()


def test_it_stands_in_for_a_server_that_is_gone(make: Make, with_sibling: Path, crops: Crops) -> None:
    settings = {"triton_url": "127.0.0.1:1", "embedding_model_repository": with_sibling}
    with make("triton", **settings) as embedder:
        embeddings, served = embedder.encode(crops, return_source=True)

    assert [(one.backend, one.where) for one in served.sources] == [("openvino", "this process")]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
