from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.in_process import InProcessBackend
from arcface_client.backends.refused import WAIT_S
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ClientClosedError, DeadlineExceededError, DeploymentError
from arcface_client.observability.served import Served
from arcface_client.runtimes.base import Runtime
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.clock import Clock
from support.local_candidates import candidate, embed, missing, poisoned
from support.processes import wait_until


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
