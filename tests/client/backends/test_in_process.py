from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.sources import OnnxFile
from arcface_client.backends.base import Refusal, Served, Source
from arcface_client.backends.in_process import InProcessBackend
from arcface_client.backends.local_model import LocalCandidate, LocalModel
from arcface_client.backends.onnxruntime import onnx_candidate
from arcface_client.backends.refused import WAIT_S
from arcface_client.backends.repository import LocalModels
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import (
    ClientClosedError,
    DeadlineExceededError,
    DeploymentError,
    InputError,
    ServerError,
)
from arcface_client.golden import golden_crops
from arcface_client.identity import EmbeddingIdentity
from arcface_client.runtimes.base import Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.runtimes.providers import CPU
from exports import save_for_insightface
from processes import wait_until
from tiny import tiny_serving_graph

A, B = EmbeddingIdentity(source_sha256="a" * 64), EmbeddingIdentity(source_sha256="b" * 64)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str, seed: int = 0, *, poison: bool = False) -> Path:
        onnx.save(tiny_serving_graph(seed, poison=poison), tmp_path / f"{name}.onnx")
        return tmp_path / f"{name}.onnx"

    return save


def candidate(
    path: Path,
    *,
    identity: EmbeddingIdentity = A,
    golden: Embeddings | None = None,
    batch_size: int = 8,
    runtime: Callable[[Path], Runtime] = OnnxRuntime,
) -> LocalCandidate:
    def load(_: EmbeddingIdentity | None) -> LocalModel:
        return LocalModel(
            runtime=runtime(path),
            backend="onnxruntime",
            model=path.stem,
            version=1,
            path=path,
            batch_size=batch_size,
            identity=identity,
            golden=golden,
            precision="fp32",
        )

    return LocalCandidate(path.stem, load)


def missing(name: str = "missing") -> LocalCandidate:
    return candidate(Path(f"/nowhere/{name}.onnx"))


def embed(path: Path, crops: Crops) -> Embeddings:
    return OnnxRuntime(path).embed(crops)


def poisoned(crops: Crops, at: int) -> Crops:
    """Crops of which one alone lets a graph with poison fail."""
    safe = crops.copy()
    safe[:, 0, 0, 0] = 0
    safe[at, 0, 0, 0] = 255
    return safe


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
        (lambda embeddings: embeddings[:1], r"shape \(1, 512\); expected \(3, 512\)"),
    ],
    ids=["NaN", "too few"],
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
    gc.collect()

    assert served.fell_back
    assert gone() is None


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def models_of(served: Served) -> list[str]:
    return [source.model for source in served.sources]


def test_ensure_ready_takes_back_what_failed_for_a_moment(
    save: Callable[..., Path], crops: Crops, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = candidate(save("first", poison=True)), candidate(save("second"))
    backend = InProcessBackend("onnxruntime", [first, second], clock=Clock())
    assert models_of(backend.encode(poisoned(crops[:3], at=0), return_source=True)[1]) == ["second"]
    assert models_of(backend.encode(poisoned(crops[:3], at=0)[1:], return_source=True)[1]) == ["second"]

    with caplog.at_level(logging.WARNING):
        backend.ensure_ready()
    _, served = backend.encode(poisoned(crops[:3], at=0)[1:], return_source=True)

    assert models_of(served) == ["first"]
    assert not served.fell_back
    assert "first serves again, instead of second" in caplog.text


def test_what_failed_is_taken_back_after_a_while_and_no_call_waits_for_it(
    save: Callable[..., Path], crops: Crops
) -> None:
    loaded, go, clock = threading.Semaphore(1), threading.Event(), Clock()

    def load(path: Path) -> Runtime:
        if not loaded.acquire(blocking=False):  # not the first time
            assert go.wait(20)
        return OnnxRuntime(path)

    first = candidate(save("first", poison=True), runtime=load)
    backend = InProcessBackend("onnxruntime", [first, candidate(save("second"))], clock=clock)
    good = poisoned(crops[:3], at=0)[1:]
    backend.encode(poisoned(crops[:3], at=0))

    clock.now_s += WAIT_S + 1
    _, meanwhile = backend.encode(good, return_source=True, timeout_s=10)
    assert models_of(meanwhile) == ["second"]
    assert meanwhile.fell_back
    go.set()

    wait_until(lambda: models_of(backend.encode(good, return_source=True)[1]) == ["first"])


def test_the_last_one_that_fails_is_tried_again_by_the_next_call(
    save: Callable[..., Path], crops: Crops
) -> None:
    backend = InProcessBackend("onnxruntime", [missing(), candidate(save("bad", poison=True))])

    with pytest.raises(DeploymentError, match=r"missing: .*; bad: .*failed on a batch of 4"):
        backend.encode(poisoned(crops[:4], at=1))

    assert len(backend.encode(poisoned(crops[:4], at=1)[2:])) == 2


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
    first = candidate(save("first", poison=True), identity=ours.record.identity())
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
    with pytest.raises(DeploymentError, match=r"wrong\.onnx drifts by [01]\.\d+ from its source model"):
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
        with pytest.raises(DeploymentError, match=r"drifts by 0\.002 .* expected at most 0\.001"):
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


def test_no_crops_need_no_model() -> None:
    assert InProcessBackend("onnxruntime", [missing()]).encode([]).shape == (0, 512)


def test_a_closed_backend_says_so(save: Callable[..., Path], crops: Crops) -> None:
    backend = InProcessBackend("onnxruntime", [candidate(save("model"))])
    backend.ensure_ready()
    backend.close()
    backend.close()

    with pytest.raises(ClientClosedError, match="The backend was closed"):
        backend.encode(crops)
    with pytest.raises(ClientClosedError):
        backend.ensure_ready()


class Gate:
    """ONNX Runtime that waits inside a run of real crops until it is let go, and notices being freed."""

    def __init__(self, path: Path) -> None:
        self._runtime = OnnxRuntime(path)
        self.entered, self.go, self.freed = threading.Event(), threading.Event(), threading.Event()

    def embed(self, crops: Crops) -> Embeddings:
        if len(crops) == 1:
            self.entered.set()
            assert self.go.wait(20)
        return self._runtime.embed(crops)

    def close(self) -> None:
        self._runtime.close()
        self.freed.set()


def test_a_call_under_way_ends_well_when_another_thread_closes(
    save: Callable[..., Path], crops: Crops
) -> None:
    path = save("model")
    gate = Gate(path)
    backend = InProcessBackend("onnxruntime", [candidate(path, runtime=lambda _: gate)])
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(backend.encode, crops[:1])
        assert gate.entered.wait(20)
        backend.close()
        assert not gate.freed.is_set()
        gate.go.set()
        np.testing.assert_allclose(call.result(20), embed(path, crops[:1]), atol=1e-6)
    assert gate.freed.is_set()


def test_another_threads_deadline_is_kept_while_a_model_is_loading(
    save: Callable[..., Path], crops: Crops
) -> None:
    path, loading, go = save("model"), threading.Event(), threading.Event()

    def load_slowly(path: Path) -> Runtime:
        loading.set()
        assert go.wait(20)
        return OnnxRuntime(path)

    backend = InProcessBackend("onnxruntime", [candidate(path, runtime=load_slowly)])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.encode, crops)
        assert loading.wait(20)
        try:
            with pytest.raises(DeadlineExceededError):
                backend.encode(crops, timeout_s=0.05)
            assert backend.diagnostics().model is None
        finally:
            go.set()
        assert len(first.result(20)) == len(crops)


def test_what_is_loaded_when_it_is_closed_meanwhile_is_freed(save: Callable[..., Path], crops: Crops) -> None:
    path, loading, go = save("model"), threading.Event(), threading.Event()
    gate = Gate(path)

    def load_slowly(path: Path) -> Runtime:
        loading.set()
        assert go.wait(20)
        return gate

    backend = InProcessBackend("onnxruntime", [candidate(path, runtime=load_slowly)])
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(backend.encode, crops)
        assert loading.wait(20)
        closing = pool.submit(backend.close)
        wait_until(lambda: backend._closed)
        go.set()
        closing.result(20)
        with pytest.raises(ClientClosedError):
            call.result(20)
    assert gate.freed.is_set()


def test_the_deadline_of_the_call_that_lets_it_load_is_kept_too(
    save: Callable[..., Path], crops: Crops
) -> None:
    path, go = save("model"), threading.Event()

    def load_slowly(path: Path) -> Runtime:
        assert go.wait(20)
        return OnnxRuntime(path)

    backend = InProcessBackend("onnxruntime", [candidate(path, runtime=load_slowly)])
    try:
        with pytest.raises(DeadlineExceededError, match=r"whole call, 0\.05 s"):
            backend.encode(crops, timeout_s=0.05)
    finally:
        go.set()
    assert len(backend.encode(crops)) == len(crops)


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
