"""Turns, batches and controls, with embedders whose faults are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeploymentError
from arcface_client.evaluation.comparison import Comparison, compare
from arcface_client.evaluation.embedders import Embedder, InProcess
from arcface_client.evaluation.measuring import measure, speeds
from arcface_client.evaluation.samples import generated_samples
from support.tiny import tiny_serving_graph

CROPS = generated_samples(20).crops


def quiet(stage: str, done: float | None) -> None: ...


class Altered(Embedder):
    """A real embedder with something done to what it takes or gives."""

    kind = "altered"
    where = "here"

    def __init__(self, name: str, inner: Embedder, embed: Callable[[Embedder, Crops], Embeddings]) -> None:
        self.name, self._inner, self._alter = name, inner, embed
        self.batches: list[int] = []

    def _embed(self, crops: Crops) -> Embeddings:
        self.batches.append(len(crops))
        return self._alter(self._inner, crops)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    path = tmp_path_factory.mktemp("measuring") / "model.onnx"
    onnx.save(tiny_serving_graph(seed=1), path)
    return InProcess(path)


def with_place(inner: Embedder, crops: Crops) -> Embeddings:
    """Every crop's embedding drags the one before it in the batch along."""
    embeddings = inner.embed(crops)
    return np.asarray(embeddings + 0.3 * np.roll(embeddings, 1, axis=0), np.float32)


def verdict(*embedders: Embedder, crops: Crops = CROPS, allowed: float = 0.001) -> Comparison:
    return compare(embedders, crops, batch_size=8, max_drift_cosine=allowed, threshold=0.3)


def test_everybody_embeds_the_same_batches_in_turns(tiny: InProcess) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[Embedder, Crops], Embeddings]:
        def embed(inner: Embedder, crops: Crops) -> Embeddings:
            order.append(name)
            return inner.embed(crops)

        return embed

    first, second = (Altered(name, tiny, noting(name)) for name in ("first", "second"))
    runs = measure([first, second], CROPS, 8, quiet)
    warm_up, batches = [1, 8], [1] * 20 + 2 * [8, 8, 4]
    assert first.batches == second.batches == warm_up + batches
    turns = [order[start : start + 2] for start in range(4, len(order), 2)]
    assert turns == [["first", "second"], ["second", "first"]] * 13
    assert {size: len(seconds) for size, seconds in runs[0].seconds().items()} == {1: 20, 8: 4}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_embeddings_come_in_the_crops_own_order(tiny: InProcess, batch_size: int) -> None:
    (runs,) = measure([tiny], CROPS, batch_size, quiet)
    expected = tiny.embed(CROPS)
    for turns in (runs.alone, runs.batched, runs.shifted):
        np.testing.assert_allclose(turns.embeddings, expected, atol=1e-6)
    assert runs.drift_between_batches < 1e-9


def test_speedup_is_within_the_turns(tiny: InProcess) -> None:
    def slowly(inner: Embedder, crops: Crops) -> Embeddings:
        started = time.perf_counter()
        embeddings = inner.embed(crops)
        while time.perf_counter() < started + 0.02:
            pass
        return embeddings

    slow, fast = measure([Altered("slow", tiny, slowly), tiny], CROPS, 8, quiet)
    alone, batched = speeds(fast, slow)
    assert (alone.batch_size, alone.turns, batched.batch_size, batched.turns) == (1, 20, 8, 4)
    assert alone.speedup > 1.5 < batched.speedup
    own = speeds(slow, slow)[1]
    assert own.speedup == 1
    assert own.latency_ms >= 20
    assert own.faces_per_s == pytest.approx(8 * 1000 / own.latency_ms)


def test_what_depends_on_its_place_in_a_batch_fails(tiny: InProcess) -> None:
    found = verdict(tiny, Altered("dragging", tiny, with_place))
    assert found.verdict.outcome == "failed"
    assert any(
        "dragging embeds a crop otherwise with its place" in reason for reason in found.verdict.reasons
    )
    assert not any(str(tiny.name) + " embeds" in reason for reason in found.verdict.reasons)


def test_one_crop_that_drifts_fails_though_the_mean_is_small(tiny: InProcess) -> None:
    odd = CROPS[13].tobytes()

    def one_wrong(inner: Embedder, crops: Crops) -> Embeddings:
        embeddings = inner.embed(crops).copy()
        for row, crop in zip(embeddings, crops, strict=True):
            if crop.tobytes() == odd:
                row[:40] += 0.02
        return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), np.float32)

    found = verdict(tiny, Altered("nearly right", tiny, one_wrong))
    assert found.pairs[0].agreement.drift_mean < 0.001 < found.pairs[0].agreement.drift_max
    assert found.verdict.outcome == "failed"


def test_embeddings_of_another_length_fail(tiny: InProcess) -> None:
    doubled = Altered("doubled", tiny, lambda inner, crops: inner.embed(crops) * np.float32(2))
    found = verdict(tiny, doubled)
    assert found.verdict.reasons == ["doubled gives embeddings of length 2 to 2; expected 1."]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_numbers_that_are_no_embedding_are_an_error(tiny: InProcess, value: float) -> None:
    broken = Altered("broken", tiny, lambda inner, crops: np.full_like(inner.embed(crops), value))
    with pytest.raises(DeploymentError, match="broken answered with embeddings that are zero, NaN"):
        verdict(tiny, broken)


def test_equal_embedders_pass_and_every_fault_is_seen(tiny: InProcess) -> None:
    found = verdict(tiny, Altered("the same", tiny, lambda inner, crops: inner.embed(crops)))
    assert found.verdict.outcome == "passed"
    assert found.verdict.reasons == []
    required = {control.fault: control.seen for control in found.controls if control.required}
    assert required == {
        "red and blue swapped": True,
        "pixels normalised twice": True,
        "another image": True,
    }


def test_crops_that_cannot_show_a_fault_make_the_comparison_blind(tiny: InProcess) -> None:
    grey = np.repeat(CROPS[..., :1], 3, axis=-1)
    found = verdict(tiny, Altered("the same", tiny, lambda inner, crops: inner.embed(crops)), crops=grey)
    assert found.verdict.outcome == "blind"
    assert found.verdict.reasons[0].startswith("red and blue swapped makes a drift of")
    one_face = np.repeat(CROPS[:1], 20, axis=0)
    assert verdict(tiny, tiny, crops=one_face).verdict.outcome == "blind"


def test_a_model_that_swaps_channels_fails_and_does_not_pass_for_blindness(tiny: InProcess) -> None:
    def swapped(inner: Embedder, crops: Crops) -> Embeddings:
        return inner.embed(np.ascontiguousarray(crops[..., ::-1]))

    assert verdict(tiny, Altered("swapped", tiny, swapped)).verdict.outcome == "failed"


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="No model file at"):
        InProcess(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(DeploymentError, match="cannot load"):
        InProcess(tmp_path / "broken.onnx")
