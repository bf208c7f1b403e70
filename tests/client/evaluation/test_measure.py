"""Turns, batches and negative controls, with systems whose mistakes are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeploymentError, InputError
from arcface_client.evaluation.comparison import Options, compare_systems
from arcface_client.evaluation.measure import measure
from arcface_client.evaluation.report import Report
from arcface_client.evaluation.samples import generated_samples
from arcface_client.evaluation.systems import System
from arcface_client.runtimes.base import Embed
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.tiny import tiny_serving_graph

SAMPLES = generated_samples(20)
CROPS = SAMPLES.crops


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> System:
    path = tmp_path_factory.mktemp("measure") / "model.onnx"
    onnx.save(tiny_serving_graph(seed=1), path)
    return System(name="tiny", kind="in process", where=str(path), run=OnnxRuntime(path).embed)


def altered(name: str, inner: System, embed: Callable[[Embed, Crops], Embeddings]) -> System:
    """A real system with something done to its input or output."""
    return replace(inner, name=name, run=lambda crops: embed(inner.run, crops))


def compared(*systems: System, crops: Crops = CROPS) -> Report:
    samples = replace(SAMPLES, crops=crops)
    return compare_systems(systems, samples, Options(batch_size=8), max_drift_cosine=0.001)


def test_systems_embed_the_same_batches_in_turns(tiny: System) -> None:
    order: list[tuple[str, int]] = []

    def noting(name: str) -> System:
        def embed(run: Embed, crops: Crops) -> Embeddings:
            order.append((name, len(crops)))
            return run(crops)

        return altered(name, tiny, embed)

    found = measure([noting("first"), noting("second")], CROPS, 8)
    warm_up, batches = [8, 1], [1] * 20 + 2 * [8, 8, 4]
    for name in ("first", "second"):
        assert [size for who, size in order if who == name] == warm_up + batches
    turns = [[who for who, _ in order[start : start + 2]] for start in range(4, len(order), 2)]
    assert turns == [["first", "second"], ["second", "first"]] * 13
    assert [(speed.batch_size, speed.turns) for speed in found[1].speed] == [(1, 20), (8, 4)]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_embeddings_are_in_the_order_of_the_crops(tiny: System, batch_size: int) -> None:
    (found,) = measure([tiny], CROPS, batch_size)
    np.testing.assert_allclose(found.embeddings, tiny.embed(CROPS), atol=1e-6)
    assert found.drift_between_batches < 1e-9
    assert [speed.batch_size for speed in found.speed] == sorted({1, batch_size})


def test_speedup_compares_times_within_a_turn(tiny: System) -> None:
    def slowly(run: Embed, crops: Crops) -> Embeddings:
        started = time.perf_counter()
        embeddings = run(crops)
        while time.perf_counter() < started + 0.02:
            pass
        return embeddings

    slow, fast = measure([altered("slow", tiny, slowly), tiny], CROPS, 8)
    assert all(speed.speedup > 1.5 for speed in fast.speed)
    own = slow.speed[1]
    assert own.speedup == 1
    assert own.latency_ms >= 20
    assert own.faces_per_s == pytest.approx(8 * 1000 / own.latency_ms)


def test_an_embedding_that_depends_on_its_place_in_a_batch_fails(tiny: System) -> None:
    def with_neighbour(run: Embed, crops: Crops) -> Embeddings:
        embeddings = run(crops)
        return np.asarray(embeddings + 0.3 * np.roll(embeddings, 1, axis=0), np.float32)

    result = compared(tiny, altered("mixing", tiny, with_neighbour)).result
    assert result.outcome == "failed"
    (reason,) = [reason for reason in result.reasons if "depends on its place in a batch" in reason]
    assert reason.startswith("mixing gives a crop")


def test_one_crop_that_drifts_fails_though_the_mean_is_small(tiny: System) -> None:
    odd = CROPS[13].tobytes()

    def one_wrong(run: Embed, crops: Crops) -> Embeddings:
        embeddings = run(crops).copy()
        for row, crop in zip(embeddings, crops, strict=True):
            if crop.tobytes() == odd:
                row[:40] += 0.02
        return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.float32)

    found = compared(tiny, altered("nearly right", tiny, one_wrong))
    assert found.agreements[0].drift_mean < 0.001 < found.agreements[0].drift_max
    assert found.result.outcome == "failed"


def test_embeddings_of_another_length_fail(tiny: System) -> None:
    doubled = altered("doubled", tiny, lambda run, crops: run(crops) * np.float32(2))
    assert compared(tiny, doubled).result.reasons == [
        "doubled gives embeddings of length 2 to 2; expected 1."
    ]


@pytest.mark.parametrize("value", [np.nan, 0])
def test_embeddings_without_a_direction_are_an_error(tiny: System, value: float) -> None:
    broken = altered("broken", tiny, lambda run, crops: np.full_like(run(crops), value))
    with pytest.raises(DeploymentError, match="broken answered with embeddings that are zero, NaN"):
        compared(tiny, broken)


def test_a_model_of_another_width_is_refused_with_both_widths(tiny: System, tmp_path: Path) -> None:
    onnx.save(tiny_serving_graph(dim=128), tmp_path / "model.onnx")
    narrow = replace(tiny, name="narrow", run=OnnxRuntime(tmp_path / "model.onnx").embed)
    assert compared(narrow, replace(narrow, name="the same")).systems[0].embeddings.shape == (20, 128)
    with pytest.raises(InputError, match="tiny gives 512 numbers, narrow gives 128 numbers; embeddings of"):
        compared(tiny, narrow)


def test_a_network_that_cannot_tell_faces_apart_is_told_though_all_agree(tiny: System) -> None:
    def collapsed(run: Embed, crops: Crops) -> Embeddings:
        embeddings = run(crops) / 3 + run(CROPS[:1])
        return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.float32)

    found = compared(*(altered(name, tiny, collapsed) for name in ("served", "reference")))
    assert found.result.outcome == "passed"
    for name, warning in zip(("served", "reference"), found.warnings, strict=True):
        assert warning.startswith(f"{name}: different faces have a mean cosine similarity of 0.9")
    assert compared(tiny, replace(tiny, name="the same")).warnings == []


@pytest.mark.parametrize(
    ("crops", "perturbation"),
    [
        (np.repeat(CROPS[..., :1], 3, axis=-1), "red and blue swapped"),
        (np.repeat(CROPS[:1], 20, axis=0), "another image"),
    ],
    ids=["grey crops", "one face"],
)
def test_crops_that_cannot_show_a_perturbation_are_inconclusive(
    tiny: System, crops: Crops, perturbation: str
) -> None:
    result = compared(tiny, tiny, crops=crops).result
    assert result.outcome == "inconclusive"
    assert result.reasons[0].startswith(f"{perturbation} causes a drift of")
