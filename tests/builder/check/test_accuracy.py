"""The check of a build and of a plan, on good models and on models with faults that people really make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from arcface_builder.check.accuracy import (
    AccuracyReport,
    ReferenceEmbeddings,
    check_onnx_model,
    reference_for_plans,
)
from arcface_builder.check.crops import comparison_crops
from arcface_builder.errors import ParityError, ServedModelError
from arcface_builder.graph.edit import embedder
from arcface_builder.graph.precision import typed_graph
from arcface_builder.source.model import SourceModel
from arcface_client.contract import Crops, Embeddings
from arcface_client.runtimes.base import Embed
from photograph import face_crops

BATCH_SIZES = (1, 4, 16, 32)


@pytest.fixture(scope="module")
def onnx_file(small_graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    path.write_bytes(small_graph)
    return path


@pytest.fixture(scope="module")
def reference(small_source: SourceModel, onnx_file: Path) -> ReferenceEmbeddings:
    source = (small_source.embed, small_source.runs)
    return reference_for_plans(onnx_file, source, face_crops(), max_drift_cosine=0.001)


def test_an_fp16_plan_passes(reference: ReferenceEmbeddings, small_graph: bytes) -> None:
    report = reference.compare(embedder(typed_graph(small_graph, "fp16")), BATCH_SIZES)

    report.check()
    assert 0 < report.largest_drift_cosine < 1e-4
    assert report.between_batches < 1e-5
    assert (report.crops, report.batch_sizes, report.compared_with) == (256, BATCH_SIZES, "source file")
    assert set(report.controls) == {
        "red and blue swapped",
        "pixels normalised twice",
        "another image",
        "another model",
    }
    assert all(drift > 0.001 for drift in report.controls.values())


def seeing(alter: Callable[[Crops], npt.NDArray[Any]]) -> Callable[[Embed], Embed]:
    """A fault: the model sees other pixels."""
    return lambda embed: lambda crops: embed(np.ascontiguousarray(alter(crops)))


swapped = seeing(lambda crops: crops[..., ::-1])


def one_place_wrong(embed: Embed) -> Embed:
    """The last place of a full batch embeds its neighbour, as a wrong grid size makes it."""

    def wrong(crops: Crops) -> Embeddings:
        embeddings = embed(crops)
        if len(crops) == 32:
            embeddings[31] = embeddings[30]
        return embeddings

    return wrong


def not_a_number(embed: Embed) -> Embed:
    return lambda crops: np.full_like(embed(crops), np.nan)


def all_alike(embed: Embed) -> Embed:
    return lambda crops: np.full_like(embed(crops), 512**-0.5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (swapped, r"The plan drifts by 0\.\d+ from the source file; expected at most 0.001"),
        (one_place_wrong, "drifts by .* with its place in a batch"),
        (not_a_number, "drifts by nan"),
    ],
    ids=["swapped channels", "one place of a batch", "not a number"],
)
def test_a_plan_that_embeds_wrongly_is_refused(
    fault: Callable[[Embed], Embed],
    message: str,
    reference: ReferenceEmbeddings,
    small_graph: bytes,
) -> None:
    with pytest.raises(ParityError, match=message):
        reference.compare(fault(embedder(small_graph)), BATCH_SIZES).check()


def test_the_worst_crops_come_first(reference: ReferenceEmbeddings, small_graph: bytes) -> None:
    embed = embedder(small_graph)

    def wrong(crops: Crops) -> Embeddings:
        embeddings = embed(crops)
        embeddings[(crops == reference.crops[7]).all(axis=(1, 2, 3))] *= -1
        return embeddings

    assert reference.compare(wrong, [1, 8]).worst_crops[0] == 7


def test_a_report_without_a_control_that_is_seen_never_passes(
    reference: ReferenceEmbeddings, small_graph: bytes
) -> None:
    report: AccuracyReport = reference.compare(embedder(small_graph), [8])

    with pytest.raises(ParityError, match=r"blind: the control 'another image' causes a drift of 0\.0005"):
        replace(report, controls={"another image": 0.0005}).check()


@pytest.mark.usefixtures("few_crops")
def test_crops_that_are_all_alike_make_the_check_blind(onnx_file: Path) -> None:
    one_face = np.repeat(face_crops()[:1], 32, axis=0)

    with pytest.raises(ServedModelError, match="The accuracy check is blind: the control 'another image'"):
        reference_for_plans(onnx_file, None, one_face, max_drift_cosine=0.001)


@pytest.mark.usefixtures("few_crops")
def test_the_share_of_the_reference_that_is_done_grows_to_all(onnx_file: Path) -> None:
    shares: list[float] = []
    reference_for_plans(
        onnx_file, None, face_crops(), max_drift_cosine=0.001, report=lambda _, done: shares.append(done or 0)
    )
    assert len(shares) > 4
    assert shares == sorted({*shares})
    assert shares[-1] == 1


def test_generated_crops_fill_up_real_ones(reference: ReferenceEmbeddings) -> None:
    assert reference.crops.shape == (256, 112, 112, 3)
    assert np.array_equal(reference.crops[:6], face_crops())
    assert len(comparison_crops(np.zeros((300, 112, 112, 3), np.uint8))) == 300


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(swapped, id="swapped channels"),
        pytest.param(seeing(lambda crops: crops // 2), id="another range"),
        pytest.param(seeing(lambda crops: np.maximum(crops, 1) - 1), id="one grey level"),
        pytest.param(seeing(lambda crops: crops[:, ::-1]), id="upside down"),
        pytest.param(not_a_number, id="not a number"),
        pytest.param(all_alike, id="all alike"),
    ],
)
def test_a_build_that_embeds_wrongly_is_refused(
    fault: Callable[[Embed], Embed], small_source: SourceModel, small_graph: bytes
) -> None:
    with pytest.raises(ParityError, match="differ from the source model's by"):
        check_onnx_model(small_source.embed, fault(embedder(small_graph)))


def test_it_is_a_warning_that_a_model_does_not_see_colour(caplog: pytest.LogCaptureFixture) -> None:
    def grey(crops: Crops) -> Embeddings:
        rows = crops.reshape(len(crops), -1, 3).astype(np.float32).mean(axis=2)[:, :512]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    check_onnx_model(grey, grey)

    assert "The comparison could not have noticed 'red and blue swapped'" in caplog.text
