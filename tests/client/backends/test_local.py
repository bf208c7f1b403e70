"""A pool of models in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.backends.local import onnx_origin
from arcface_client.backends.pooled import PooledBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ClientClosedError,
    DeadlineExceededError,
    DeploymentError,
    DriftError,
    ModelLoadingError,
    NoCandidateError,
)
from arcface_client.failover import replica
from arcface_client.failover.replica import Intervals
from arcface_client.models.golden import golden_crops
from arcface_client.models.repository import LocalModels
from arcface_client.observability.diagnostics import Served, Source
from arcface_client.runtimes.base import CPU, Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.exports import save_for_insightface
from support.local_models import embed, local, missing, poisoned
from support.processes import wait_until
from support.tiny import tiny_serving_graph

Save = Callable[..., Path]


def models_of(served: Served) -> list[str]:
    return [source.model for source in served.sources]


def test_the_first_that_can_be_loaded_embeds_in_batches(save: Save, crops: Crops) -> None:
    with PooledBackend("onnxruntime", [local(save("first")), local(save("second"))]) as backend:
        embeddings, served = backend.encode(crops, return_source=True)
        diagnostics = backend.diagnostics()
    np.testing.assert_allclose(embeddings, embed(save("first"), crops), atol=1e-6)
    assert served.sources == (Source("onnxruntime", "first", 1, "this process", 100),)
    assert not served.fell_back
    assert [one.state for one in diagnostics.candidates] == ["serving", "standing by"]
    assert diagnostics.latency_ms is not None
    assert diagnostics.throughput_fps == pytest.approx(100 / diagnostics.latency_ms * 1e3)


def test_if_none_can_be_loaded_every_reason_is_given_and_what_is_fixed_is_used(
    save: Save, tmp_path: Path
) -> None:
    broken = save("broken")
    broken.write_bytes(b"no model")
    with PooledBackend("onnxruntime", [local(tmp_path / "late.onnx"), local(broken)]) as backend:
        with pytest.raises(NoCandidateError) as caught:
            backend.ensure_ready()
        assert "late: No model file" in str(caught.value)
        assert set(caught.value.reasons) == {"late", "broken"}
        save("late")
        backend.ensure_ready()
        assert backend.diagnostics().model == "late"


def test_the_width_of_the_embeddings_is_the_networks_own(crops: Crops, tmp_path: Path) -> None:
    path = tmp_path / "narrow.onnx"
    onnx.save(tiny_serving_graph(dim=128), path)
    with PooledBackend("onnxruntime", [local(path)]) as backend:
        assert backend.encode(crops[:0]).shape == (0, 128)
        assert backend.encode(crops[:3]).shape == (3, 128)
        assert backend.diagnostics().embedding_dim == 128


def test_crops_that_a_model_fails_on_are_embedded_by_the_next(save: Save, crops: Crops) -> None:
    bad, good = save("bad", poison=True), save("good")
    mixed = poisoned(crops, at=50)
    with PooledBackend("onnxruntime", [local(bad), local(good)]) as backend:
        embeddings, served = backend.encode(mixed, return_source=True)
        np.testing.assert_allclose(embeddings, embed(good, mixed), atol=1e-6)
        assert [(source.model, source.crops) for source in served.sources] == [("bad", 48), ("good", 52)]
        assert "failed on a batch of 8" in served.refusals[0].reason
        # A single failure may be the crops'; three in a row, where another model does better, are its own.
        assert models_of(backend.encode(crops[:1], return_source=True)[1]) == ["bad"]
        for _ in range(3):
            backend.encode(mixed[50:51])
        assert models_of(backend.encode(mixed[:1], return_source=True)[1]) == ["good"]
        backend.ensure_ready()
        assert models_of(backend.encode(mixed[:1], return_source=True)[1]) == ["bad"]


class Spoilt:
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
def test_what_is_not_a_batch_of_embeddings_is_never_returned(
    spoil: Callable[[Embeddings], Embeddings], message: str, save: Save, crops: Crops
) -> None:
    bad = local(save("model"), runtime=lambda path: Spoilt(path, spoil))
    with PooledBackend("onnxruntime", [bad]) as alone, pytest.raises(DeploymentError, match=message):
        alone.encode(crops[:3])
    with PooledBackend("onnxruntime", [bad, local(save("second"))]) as both:
        embeddings, served = both.encode(crops[:3], return_source=True)
    np.testing.assert_allclose(embeddings, embed(save("model"), crops[:3]), atol=1e-6)
    assert models_of(served) == ["second"]


def test_a_fallback_takes_the_newest_version_of_the_embedding_space_in_use(
    save: Save, crops: Crops, models: Path, tmp_path: Path
) -> None:
    repository = LocalModels(models)
    ours = repository.onnx("small")
    golden = embed(ours.path, golden_crops())

    class FailsOnLiveCrops(OnnxRuntime):
        def embed(self, crops: Crops) -> Embeddings:
            if not np.array_equal(crops, golden_crops()):
                raise ModelLoadingError("not now")
            return golden

    first = local(save("first"), space=ours.manifest.embedding_space(), runtime=FailsOnLiveCrops)
    with PooledBackend("onnxruntime", [first, onnx_origin(repository, "small", CPU)]) as backend:
        backend.ensure_ready()
        build(OnnxFile(save_for_insightface(tmp_path, seed=1)), name="small", repository=models)
        embeddings, served = backend.encode(crops, return_source=True)
        assert backend.space() == ours.manifest.embedding_space()
    assert [(source.model, source.version) for source in served.sources] == [("small_onnx", 1)]
    np.testing.assert_allclose(embeddings, embed(ours.path, crops), atol=1e-6)


def test_a_model_that_drifts_from_its_manifest_is_refused_with_the_figure(save: Save) -> None:
    golden = embed(save("right"), golden_crops())
    wrong, right = local(save("wrong", seed=1), golden=golden), local(save("right"), golden=golden)
    with PooledBackend("onnxruntime", [wrong]) as alone:
        with pytest.raises(NoCandidateError, match=r"wrong: its golden embeddings drift [01]\.\d+") as caught:
            alone.ensure_ready()
        assert isinstance(caught.value.reasons["wrong"], DriftError)
        validation = alone.diagnostics().validation
    assert validation.regression_test == "failed"
    assert validation.drift_vs_reference is not None and validation.drift_vs_reference > 0.5
    with PooledBackend("onnxruntime", [wrong, right]) as backend:
        backend.ensure_ready()
        validation = backend.diagnostics().validation
        assert (validation.reference, validation.regression_test) == ("manifest", "passed")
        assert validation.drift_vs_reference is not None and 0 <= validation.drift_vs_reference < 1e-9
        assert backend.diagnostics().candidates[0].drift is not None


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


def test_batches_become_smaller_towards_the_deadline(save: Save, crops: Crops) -> None:
    runtime = Slow(save("model"))
    origin = local(save("model"), batch_size=32, runtime=lambda _: runtime)
    with PooledBackend("onnxruntime", [origin]) as backend:
        backend.ensure_ready()
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"whole call, 0\.2 s, is over"):
            backend.encode(crops[:32], timeout_s=0.2)
        assert time.monotonic() - started < 0.2 + 3 * Slow.CROP_S
        runtime.batches.clear()
        backend.encode(crops[:40], timeout_s=60)
    assert runtime.batches == [32, 8]


class Gate:
    """ONNX Runtime that waits inside a run of a single crop, and notices when it is freed."""

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


def test_a_closed_backend_is_freed_behind_its_last_call_and_refuses_further_ones(
    save: Save, crops: Crops
) -> None:
    path = save("model")
    gate = Gate(path)
    backend = PooledBackend("onnxruntime", [local(path, runtime=lambda _: gate)])
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(backend.encode, crops[:1])
        assert gate.entered.wait(20)
        backend.close()
        backend.close()
        assert not gate.freed.is_set()
        gate.go.set()
        np.testing.assert_allclose(call.result(20), embed(path, crops[:1]), atol=1e-6)
    assert gate.freed.is_set()
    for given in (crops, crops[:0]):
        with pytest.raises(ClientClosedError, match="The embedder is closed"):
            backend.encode(given)
    with pytest.raises(ClientClosedError):
        backend.ensure_ready()
    assert backend.diagnostics().candidates == ()


def test_the_deadline_holds_while_a_model_is_loading_and_closing_frees_it(save: Save, crops: Crops) -> None:
    path, loading, go = save("model"), threading.Event(), threading.Event()
    gate = Gate(path)

    def load_slowly(path: Path) -> Runtime:
        loading.set()
        assert go.wait(20)
        return gate

    backend = PooledBackend("onnxruntime", [local(path, runtime=load_slowly)])
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(backend.encode, crops)
        assert loading.wait(20)
        with pytest.raises(DeadlineExceededError, match=r"whole call, 0\.05 s"):
            backend.encode(crops, timeout_s=0.05)
        assert backend.diagnostics().model is None
        closing = pool.submit(backend.close)
        time.sleep(0.1)
        go.set()
        closing.result(20)
        with pytest.raises(ClientClosedError):
            call.result(20)
    assert gate.freed.is_set()


def test_threads_share_one_model(save: Save, crops: Crops) -> None:
    path, loads = save("model"), list[int]()

    def load(path: Path) -> Runtime:
        loads.append(1)
        return OnnxRuntime(path)

    expected = embed(path, crops)
    with (
        PooledBackend("onnxruntime", [missing(), local(path, runtime=load)]) as backend,
        ThreadPoolExecutor(8) as pool,
    ):
        calls = [pool.submit(backend.encode, crops[start:], return_source=True) for start in range(40)]
        for start, call in enumerate(calls):
            embeddings, served = call.result()
            np.testing.assert_allclose(embeddings, expected[start:], atol=1e-6)
            assert [refusal.candidate for refusal in served.refusals] == ["missing"]
    assert loads == [1]


def test_a_model_that_failed_to_load_is_taken_back_in_the_background(
    save: Save, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "LOCAL_COOLDOWN_S", 0.1)
    late, second = local(tmp_path / "late.onnx"), local(save("second"))
    intervals = Intervals(recheck_s=0.05, refused_again_s=0.05)
    with PooledBackend("onnxruntime", [late, second], intervals=intervals) as backend:
        assert models_of(backend.encode(crops[:2], return_source=True)[1]) == ["second"]
        save("late")
        wait_until(lambda: models_of(backend.encode(crops[:2], return_source=True)[1]) == ["late"])


def test_a_failure_to_load_is_not_repeated_by_every_call(crops: Crops) -> None:
    tries: list[int] = []

    def load(path: Path) -> Runtime:
        tries.append(1)
        return OnnxRuntime(path)

    origin = local(Path("/nowhere/model.onnx"), runtime=load)
    with PooledBackend("onnxruntime", [origin]) as backend:
        for _ in range(3):
            with pytest.raises(NoCandidateError, match="No model file"):
                backend.encode(crops[:1])
        assert len(tries) == 1
        with pytest.raises(NoCandidateError):
            backend.ensure_ready()
        assert len(tries) == 2
