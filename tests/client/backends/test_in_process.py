from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.backends.in_process import InProcessBackend
from arcface_client.backends.onnxruntime import onnx_candidate
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import (
    ClientClosedError,
    DeadlineExceededError,
    DeploymentError,
    InputError,
    ServerError,
)
from arcface_client.models.golden import golden_crops
from arcface_client.models.repository import LocalModels
from arcface_client.observability.served import Refusal, Source
from arcface_client.runtimes.base import CPU
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.exports import save_for_insightface
from support.local_candidates import A, B, candidate, embed, missing, poisoned
from support.processes import wait_until


def test_the_first_that_can_be_used_embeds_in_batches(save: Callable[..., Path], crops: Crops) -> None:
    with InProcessBackend("onnxruntime", [candidate(save("first")), candidate(save("second"))]) as backend:
        embeddings, served = backend.encode(crops, return_source=True)

    np.testing.assert_allclose(embeddings, embed(save("first"), crops), atol=1e-6)
    assert served.sources == (Source("onnxruntime", "first", 1, "this process", 100),)
    assert not served.fell_back


def test_what_cannot_be_used_gives_way_and_that_is_said(
    save: Callable[..., Path], crops: Crops, caplog: pytest.LogCaptureFixture
) -> None:
    backend = InProcessBackend("onnxruntime", [missing(), candidate(save("second"))])

    with caplog.at_level(logging.WARNING):
        _, served = backend.encode(crops, return_source=True)

    assert served.fell_back
    ((refusal),) = served.refusals
    assert refusal.candidate == "missing"
    assert refusal.reason.startswith("No model file at /nowhere/missing.onnx")
    assert "second serves, since missing cannot: No model file" in caplog.text
    states = [(report.candidate, report.state) for report in backend.diagnostics().candidates]
    assert states == [("missing", "refused"), ("second", "serving")]


def test_if_none_can_be_used_every_reason_is_given(save: Callable[..., Path]) -> None:
    broken = save("broken")
    broken.write_bytes(b"no model")
    backend = InProcessBackend("onnxruntime", [missing(), candidate(broken)])

    with pytest.raises(
        DeploymentError,
        match=r"Nothing can embed .* missing: No model file .*; broken: ONNX Runtime cannot load",
    ):
        backend.ensure_ready()

    assert [report.state for report in backend.diagnostics().candidates] == ["refused", "refused"]


def test_what_was_mended_is_used(save: Callable[..., Path], tmp_path: Path) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(tmp_path / "late.onnx")])
    with pytest.raises(DeploymentError, match="No model file"):
        backend.ensure_ready()

    save("late")

    backend.ensure_ready()


def test_a_model_that_fails_in_the_middle_leaves_the_rest_to_the_next(
    save: Callable[..., Path], crops: Crops
) -> None:
    bad, good = save("bad", poison=True), save("good")
    backend = InProcessBackend("onnxruntime", [candidate(bad), candidate(good)])
    mixed = poisoned(crops, at=50)

    embeddings, served = backend.encode(mixed, return_source=True)

    np.testing.assert_allclose(embeddings, embed(good, mixed), atol=1e-6)
    assert [(source.model, source.crops) for source in served.sources] == [("bad", 48), ("good", 52)]
    assert "failed on a batch of 8" in served.refusals[0].reason
    _, later = backend.encode(crops[:1], return_source=True)
    assert [source.model for source in later.sources] == ["good"]


class Failed:
    """A runtime on a GPU that has failed for good: nothing works on it any more, not even giving it back."""

    max_batch_size = 8

    def __init__(self, path: Path) -> None:
        self._runtime: OnnxRuntime | None = OnnxRuntime(path)

    def embed(self, crops: Crops) -> Embeddings:
        if self._runtime is not None and np.array_equal(crops, golden_crops()):  # proved before it failed
            return self._runtime.embed(crops)
        self._runtime = None
        raise DeploymentError("CUDA says cudaErrorIllegalAddress: an illegal memory access was encountered")

    def close(self) -> None:
        if self._runtime is None:
            self.embed(golden_crops())


def test_a_model_that_cannot_even_be_freed_gives_way_to_the_next(
    save: Callable[..., Path], crops: Crops, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = save("bad"), save("good")
    backend = InProcessBackend("tensorrt", [candidate(bad, runtime=Failed), candidate(good)])

    for _ in range(3):
        _, served = backend.encode(crops[:10], return_source=True)
        assert [source.model for source in served.sources] == ["good"]

    assert "was not freed: CUDA says cudaErrorIllegalAddress" in caplog.text


def test_a_handler_of_the_log_may_embed(
    save: Callable[..., Path], crops: Crops, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = save("bad"), save("good")
    backend = InProcessBackend("tensorrt", [candidate(bad, runtime=Failed), candidate(good)])
    models: list[str] = []

    class Alert(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            models.append(backend.encode(crops[:1], return_source=True)[1].sources[0].model)
            return True

    with caplog.filtering(Alert()):
        # In a thread of its own, which the test does without should it hang.
        thread = threading.Thread(target=backend.encode, args=(crops[:10],), daemon=True)
        thread.start()
        thread.join(10)

    assert not thread.is_alive()
    assert models
    assert set(models) == {"good"}


class Degrading:
    """ONNX Runtime whose answers to anything but the golden crops are spoilt."""

    def __init__(self, path: Path, spoil: Callable[[Embeddings], Embeddings]) -> None:
        self._runtime, self._spoil = OnnxRuntime(path), spoil

    def embed(self, crops: Crops) -> Embeddings:
        embeddings = self._runtime.embed(crops)
        return embeddings if np.array_equal(crops, golden_crops()) else self._spoil(embeddings)

    def close(self) -> None:
        self._runtime.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda embeddings: embeddings * np.float32("nan"), "NaN or infinite values"),
        (lambda embeddings: embeddings * np.float32("inf"), "NaN or infinite values"),
        (lambda embeddings: embeddings[:1], r"shape \(1, 512\); expected \(3, 512\)"),
        (lambda embeddings: embeddings[:, :1], r"shape \(3, 1\); expected \(3, 512\)"),
    ],
    ids=["NaN", "infinite", "too few", "too short"],
)
def test_what_are_no_embeddings_is_never_handed_out(
    spoil: Callable[[Embeddings], Embeddings], message: str, save: Callable[..., Path], crops: Crops
) -> None:
    path = save("model")
    bad = candidate(path, runtime=lambda path: Degrading(path, spoil))

    with pytest.raises(ServerError, match=message):
        InProcessBackend("onnxruntime", [bad]).encode(crops[:3])

    both = InProcessBackend("onnxruntime", [bad, candidate(save("second"))])
    embeddings, served = both.encode(crops[:3], return_source=True)
    np.testing.assert_allclose(embeddings, embed(path, crops[:3]), atol=1e-6)
    assert [source.model for source in served.sources] == ["second"]


def test_a_failure_that_is_remembered_keeps_no_crops(save: Callable[..., Path]) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(save("bad", poison=True)), candidate(save("good"))])
    given = poisoned(np.zeros((3, *CROP_SHAPE), np.uint8), at=0)
    gone = weakref.ref(given)

    _, served = backend.encode(given, return_source=True)
    del given

    assert served.fell_back
    wait_until(lambda: gc.collect() >= 0 and gone() is None)  # a thread may be just about to end


def test_a_failure_to_load_keeps_no_crops() -> None:
    backend = InProcessBackend("onnxruntime", [missing()])

    def fail() -> weakref.ref[Crops]:
        given = np.zeros((3, *CROP_SHAPE), np.uint8)
        with pytest.raises(DeploymentError, match="No model file"):
            backend.encode(given)
        return weakref.ref(given)

    calls = [fail() for _ in range(3)]
    gc.collect()

    assert all(given() is None for given in calls)


def test_a_candidate_of_another_source_model_never_takes_over(
    save: Callable[..., Path], crops: Crops
) -> None:
    ours = candidate(save("ours", poison=True), identity=A)
    theirs = candidate(save("theirs", seed=1), identity=B)
    backend = InProcessBackend("onnxruntime", [ours, theirs])

    with pytest.raises(DeploymentError, match=r"theirs: .* is of another source model, SHA-256 bbbbbbbbbbbb"):
        backend.encode(poisoned(crops, at=3))


def test_a_fallback_takes_the_newest_version_of_the_identity_in_use(
    save: Callable[..., Path], crops: Crops, models: Path, tmp_path: Path
) -> None:
    repository = LocalModels(models)
    ours = repository.onnx("small")
    first = candidate(save("first", poison=True), identity=ours.manifest.embedding_space())
    backend = InProcessBackend("onnxruntime", [first, onnx_candidate(repository, "small", CPU)])
    backend.ensure_ready()

    build(OnnxFile(save_for_insightface(tmp_path, seed=1)), name="small", repository=models)
    embeddings, served = backend.encode(poisoned(crops, at=0), return_source=True)

    assert [(source.model, source.version) for source in served.sources] == [("small_onnx", 1)]
    np.testing.assert_allclose(embeddings, embed(ours.path, poisoned(crops, at=0)), atol=1e-6)


def test_a_model_that_drifts_from_its_reference_is_refused_with_the_figure(
    save: Callable[..., Path],
) -> None:
    golden = embed(save("right"), golden_crops())
    wrong = candidate(save("wrong", seed=1), golden=golden)
    right = candidate(save("right"), golden=golden)

    alone = InProcessBackend("onnxruntime", [wrong])
    with pytest.raises(DeploymentError, match=r"wrong\.onnx has .* drift [01]\.\d+ from those of its"):
        alone.ensure_ready()
    validation = alone.diagnostics().validation
    assert validation.regression_test == "failed"
    assert validation.drift_vs_reference is not None
    assert validation.drift_vs_reference > 0.5

    backend = InProcessBackend("onnxruntime", [wrong, right])
    backend.ensure_ready()
    validation = backend.diagnostics().validation
    assert (validation.reference, validation.regression_test) == ("manifest", "passed")
    assert validation.drift_vs_reference is not None
    assert 0 <= validation.drift_vs_reference < 1e-9
    assert backend.diagnostics().candidates[0].drift is not None


@pytest.mark.parametrize(("angle", "passes"), [(0.02, True), (0.063, False)])
def test_the_tolerance_is_where_it_says(save: Callable[..., Path], angle: float, passes: bool) -> None:
    """0.02 and 0.063 radians are drifts of 0.0002 and 0.002."""
    golden = embed(save("model"), golden_crops()).astype(np.float64)
    other = np.roll(golden, 1, axis=1)
    other -= np.einsum("nd,nd->n", golden, other)[:, np.newaxis] * golden
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    turned = (np.cos(angle) * golden + np.sin(angle) * other).astype(np.float32)
    backend = InProcessBackend("onnxruntime", [candidate(save("model"), golden=turned)])

    if passes:
        backend.ensure_ready()
    else:
        with pytest.raises(DeploymentError, match=r"drift 0\.002 .* allows 0\.001"):
            backend.ensure_ready()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match=f"max_drift_cosine is {tolerance}; expected a number above 0"):
        InProcessBackend("onnxruntime", [missing()], max_drift_cosine=tolerance)


def test_nothing_is_loaded_or_known_before_it_is_needed() -> None:
    diagnostics = InProcessBackend("onnxruntime", [missing()]).diagnostics()

    assert diagnostics.candidates[0].state == "standing by"
    assert (diagnostics.model, diagnostics.latency_ms, diagnostics.throughput_fps) == (None, None, None)
    assert diagnostics.validation.regression_test is None


def test_the_deadline_is_kept_between_batches(save: Callable[..., Path], crops: Crops) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(save("model"), batch_size=1)])
    backend.ensure_ready()
    many = np.tile(crops, (30, 1, 1, 1))

    with pytest.raises(DeadlineExceededError, match=r"whole call, 0\.02 s, is over"):
        backend.encode(many, timeout_s=0.02)


class Slow:
    """ONNX Runtime on a slow machine."""

    CROP_S = 0.03

    def __init__(self, path: Path) -> None:
        self._runtime = OnnxRuntime(path)
        self.batches: list[int] = []

    def embed(self, crops: Crops) -> Embeddings:
        self.batches.append(len(crops))
        time.sleep(self.CROP_S * len(crops))
        return self._runtime.embed(crops)

    def close(self) -> None:
        self._runtime.close()


def test_the_deadline_is_kept_within_a_batch(save: Callable[..., Path], crops: Crops) -> None:
    runtime = Slow(save("model"))
    backend = InProcessBackend(
        "onnxruntime", [candidate(save("model"), batch_size=32, runtime=lambda _: runtime)]
    )
    backend.ensure_ready()
    runtime.batches.clear()

    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        backend.encode(crops[:32], timeout_s=0.2)

    assert time.monotonic() - started < 0.2 + 3 * Slow.CROP_S
    runtime.batches.clear()
    backend.encode(crops[:40], timeout_s=60)
    assert runtime.batches == [32, 8]


def test_no_crops_need_no_model() -> None:
    assert InProcessBackend("onnxruntime", [missing()]).encode([]).shape == (0, 512)


def test_a_closed_backend_says_so(save: Callable[..., Path], crops: Crops) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(save("model"))])
    backend.ensure_ready()
    backend.close()
    backend.close()

    for given in (crops, crops[:0]):
        with pytest.raises(ClientClosedError, match="The backend was closed"):
            backend.encode(given)
    with pytest.raises(ClientClosedError):
        backend.ensure_ready()
    diagnostics = backend.diagnostics()
    assert diagnostics.model is None
    assert [report.state for report in diagnostics.candidates] == ["standing by"]


def test_threads_share_it(save: Callable[..., Path], crops: Crops) -> None:
    path = save("model")
    expected = embed(path, crops)
    backend = InProcessBackend("onnxruntime", [missing(), candidate(path)])

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(backend.encode, crops[start:], return_source=True) for start in range(40)]
        for start, call in enumerate(calls):
            embeddings, served = call.result()
            np.testing.assert_allclose(embeddings, expected[start:], atol=1e-6)
            assert served.refusals == (Refusal("missing", str(served.refusals[0].reason)),)


def test_the_figures_are_those_of_the_calls(save: Callable[..., Path], crops: Crops) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(save("model"))])
    backend.ensure_ready()
    assert backend.diagnostics().latency_ms is None  # the golden check is no call

    backend.encode(crops)

    diagnostics = backend.diagnostics()
    assert diagnostics.latency_ms is not None
    assert diagnostics.throughput_fps == pytest.approx(100 / diagnostics.latency_ms * 1e3)
