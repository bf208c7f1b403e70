"""The model in this process: loaded at first need, within a call's time, and let go."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.last_resort import IDLE_S, TRY_AGAIN_S, LastResort
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ClientClosedError, DeadlineExceededError, DeploymentError
from arcface_client.failover.discovery import Wanted
from arcface_client.failover.examiner import Examiner
from arcface_client.failover.intervals import Rhythm
from arcface_client.failover.pool import Selector
from arcface_client.failover.server import RequestLimits
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.observability.served import Served
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.embed_request import EmbedRequest
from support.clock import Clock
from support.fake_triton import FakeTriton, served
from support.siblings import InThisProcess, tiny_embeddings

EXAMINER = Examiner(lambda model, version: None, 0.001)


@pytest.fixture
def selector() -> Iterator[Selector]:
    selector = Selector(Wanted(("127.0.0.1:9",), "tiny"), EXAMINER, RequestLimits(), Rhythm())
    yield selector
    selector.close()


def job(crops: Crops, timeout_s: float | None = None) -> EmbedRequest:
    return EmbedRequest(crops, Deadline(timeout_s))


def embedded(last_resort: LastResort, crops: Crops) -> Embeddings:
    work = job(crops)
    last_resort.run(work)
    return work.embeddings


def test_it_is_loaded_once_for_many_threads_and_settles_the_identity(
    selector: Selector, crops: Crops, tmp_path: Path
) -> None:
    made: list[EmbeddingSpace | None] = []

    def make(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        made.append(identity)
        return InThisProcess(tmp_path)

    last_resort = LastResort(make, selector, EXAMINER)
    assert last_resort.loaded is None
    threads = [threading.Thread(target=embedded, args=(last_resort, crops[:2])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [None]
    np.testing.assert_allclose(embedded(last_resort, crops), tiny_embeddings(tmp_path, crops), atol=1e-6)
    assert selector.identity is not None
    assert selector.identity.settled_by == "tiny_onnx in this process"
    last_resort.close()
    with pytest.raises(ClientClosedError):
        embedded(last_resort, crops)


def test_a_call_waits_for_the_loading_no_longer_than_it_may(
    selector: Selector, crops: Crops, tmp_path: Path
) -> None:
    goes_on = threading.Event()

    def make(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        goes_on.wait(20)
        return InThisProcess(tmp_path)

    last_resort = LastResort(make, selector, EXAMINER)
    started = time.monotonic()
    try:
        with pytest.raises(DeadlineExceededError):
            last_resort.run(job(crops, timeout_s=0.1))
        assert time.monotonic() - started < 8, "of 20 that the loading lasts"
    finally:
        goes_on.set()
    assert embedded(last_resort, crops[:1]).shape == (1, 512)
    last_resort.close()


def test_closing_while_it_loads_frees_what_was_loaded(
    selector: Selector, crops: Crops, tmp_path: Path
) -> None:
    goes_on = threading.Event()
    closed: list[int] = []

    class Closing(InThisProcess):
        def close(self) -> None:
            closed.append(1)
            super().close()

    def make(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        goes_on.wait(20)
        return Closing(tmp_path)

    last_resort = LastResort(make, selector, EXAMINER)
    with pytest.raises(DeadlineExceededError):
        last_resort.run(job(crops, timeout_s=0.05))
    threading.Timer(0.2, goes_on.set).start()
    last_resort.close()
    assert closed == [1]


def test_a_failure_to_load_is_not_tried_again_at_every_call(selector: Selector, crops: Crops) -> None:
    clock, tries = Clock(), list[int]()

    def make(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        tries.append(1)
        clock.now_s += 2 * TRY_AGAIN_S  # it takes its time
        raise DeploymentError("there is no model repository")

    last_resort = LastResort(make, selector, EXAMINER, clock)
    for _ in range(3):
        with pytest.raises(DeploymentError, match="there is no model repository"):
            embedded(last_resort, crops[:1])
    assert len(tries) == 1
    clock.now_s += TRY_AGAIN_S
    with pytest.raises(DeploymentError):
        embedded(last_resort, crops[:1])
    assert len(tries) == 2
    last_resort.close()


def test_what_cannot_be_examined_is_freed(selector: Selector, crops: Crops, tmp_path: Path) -> None:
    closed: list[int] = []

    class NoMemory(InThisProcess):
        def run(self, job: EmbedRequest) -> Served:
            raise MemoryError("nothing is left")

        def close(self) -> None:
            closed.append(1)
            super().close()

    last_resort = LastResort(lambda identity: NoMemory(tmp_path), selector, EXAMINER)
    with pytest.raises(MemoryError):
        embedded(last_resort, crops[:1])
    assert closed == [1]
    last_resort.close()


def test_a_failure_that_is_remembered_keeps_no_crops_alive(selector: Selector, crops: Crops) -> None:
    def make(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        raise DeploymentError("there is no model repository")

    def fail() -> weakref.ref[EmbedRequest]:
        work = job(crops)
        with pytest.raises(DeploymentError):
            last_resort.run(work)
        return weakref.ref(work)

    last_resort = LastResort(make, selector, EXAMINER)
    works = [fail() for _ in range(3)]
    gc.collect()
    assert [work() for work in works] == [None] * 3
    last_resort.close()


def test_it_is_let_go_when_a_candidate_serves_and_nobody_needed_it_for_a_while(
    crops: Crops, tmp_path: Path
) -> None:
    called, goes_on, clock = threading.Event(), threading.Event(), Clock()

    class Slow(InThisProcess):
        def run(self, job: EmbedRequest) -> Served:
            if len(job.crops) == 1:
                called.set()
                assert goes_on.wait(20)
            return super().run(job)

    with served(FakeTriton(model="fake_onnx")) as url:
        selector = Selector(Wanted((url,), "fake"), EXAMINER, RequestLimits(), Rhythm())
        last_resort = LastResort(lambda identity: Slow(tmp_path), selector, EXAMINER, clock)
        last_resort.ensure_ready()
        clock.now_s += IDLE_S
        last_resort.let_go_if_idle()
        assert last_resort.loaded is not None, "nobody else serves"
        selector.identity = None  # the fake is no relative of the tiny model
        assert selector.look(Deadline(None)).ranking
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(embedded, last_resort, crops[:1])
            assert called.wait(20)
            clock.now_s += IDLE_S
            last_resort.let_go_if_idle()
            assert last_resort.loaded is not None, "a call is under way"
            goes_on.set()
            call.result(20)
        last_resort.let_go_if_idle()
        assert last_resort.loaded is not None, "it was needed until now"
        clock.now_s += IDLE_S
        last_resort.let_go_if_idle()
        assert last_resort.loaded is None
        last_resort.close()
        selector.close()
