"""Servers and models that hang: they take crops, and say nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import DeadlineExceededError
from arcface_client.failover import run as fallback
from arcface_client.failover.intervals import Intervals
from arcface_client.triton import client
from arcface_client.triton.limits import RequestLimits
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.siblings import (
    NAME,
    PLAN,
    QUICK,
    SELDOM,
    Pair,
    Recorded,
    in_the_middle,
    local_tiny,
    serving,
    stopped,
    urls,
)
from support.tiny import write_tiny_repository

pytestmark = pytest.mark.faults


def test_a_server_that_hangs_does_not_hold_a_call_that_another_can_serve(
    pair: Pair, many: Crops, truth: Embeddings
) -> None:
    with TritonBackend(urls(pair), NAME, intervals=QUICK) as embedder:
        embedder.ensure_ready()
        started = time.monotonic()
        try:
            embeddings, served = in_the_middle(embedder, many, signal.SIGSTOP, pair[0])
        finally:
            os.kill(pair[0].pid, signal.SIGCONT)
        took_s = time.monotonic() - started
        np.testing.assert_allclose(embeddings, truth, atol=1e-6)
        assert [source.where for source in served.sources] == urls(pair)
        assert "did not say within 0.5 s that it is alive" in served.refusals[0].reason
        assert took_s < 15  # of 30 that the call had, and 60 that a request has
        wait_until(lambda: serving(embedder) == f"{PLAN}:1 at {pair[0].grpc_url}")


def test_a_server_that_hangs_does_not_hold_many_calls_that_begin_then(
    pair: Pair, many: Crops, truth: Embeddings
) -> None:
    """More than its socket takes: what is stuck there has to end in time, too."""
    calls = 8
    with TritonBackend(urls(pair), NAME, intervals=QUICK) as embedder, ThreadPoolExecutor(calls) as pool:
        embedder.ensure_ready()
        started = time.monotonic()
        with stopped(pair[0]):
            futures = [pool.submit(embedder.encode, many[:32], timeout_s=8) for _ in range(calls)]
            results = [future.result(timeout=20) for future in futures]
            took_s = time.monotonic() - started
    for embeddings in results:
        np.testing.assert_allclose(embeddings, truth[:32], atol=1e-6)
    assert took_s < 8


def test_a_server_that_is_back_is_asked_though_another_one_used_up_the_patience(
    tmp_path: Path, many: Crops, truth: Embeddings
) -> None:
    seldom = Intervals(recheck_s=60, liveness_s=0.5)
    repository = write_tiny_repository(tmp_path / "repository").parent
    with LocalTriton(repository) as second, TritonBackend("localhost:1", NAME) as _:
        with LocalTriton(repository) as first:
            urls = [first.grpc_url, second.grpc_url]
            embedder = TritonBackend(urls, NAME, intervals=seldom, limits=RequestLimits(request_timeout_s=2))
            embedder.ensure_ready()
        embedder.encode(many[:1])  # finds the first one gone
        with (
            LocalTriton(repository, grpc_port=int(first.grpc_url.rpartition(":")[2])),
            stopped(second),
            embedder,
        ):
            embeddings, served = embedder.encode(many[:9], return_source=True)
    np.testing.assert_allclose(embeddings, truth[:9], atol=1e-6)
    assert [source.where for source in served.sources] == [first.grpc_url]


def test_a_server_that_hangs_during_its_golden_check_does_not_hold_the_first_call(
    pair: Pair, many: Crops
) -> None:
    hung, other = pair

    def stop(model: str, version: int) -> None:
        """Called between the list of models and the golden check."""
        if not time_of_stop:
            time_of_stop.append(time.monotonic())
            os.kill(hung.pid, signal.SIGSTOP)

    time_of_stop: list[float] = []
    try:
        with TritonBackend(urls(pair), NAME, records=Recorded(stop), intervals=QUICK) as embedder:
            _, served = embedder.encode(many[:3], return_source=True)
            assert time.monotonic() - time_of_stop[0] < 8
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    assert served.sources[0].where == other.grpc_url


CROPS = np.zeros((3, *CROP_SHAPE), np.uint8)


class SecretiveTriton(FakeTriton):
    """Does not list its models while it is told not to."""

    def __init__(self) -> None:
        super().__init__(model="fake_onnx")
        self.lists = threading.Event()
        self.lists.set()

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.lists.wait(20)
        return super().RepositoryIndex(request, context)


Servers = tuple[FakeTriton, str, str]


@pytest.fixture
def servers() -> Iterator[Servers]:
    """The first, which can be made to hang, its URL and that of the second."""
    first, second = FakeTriton(model="fake_onnx"), FakeTriton(model="fake_onnx")
    with served(first) as one, served(second) as two:
        yield first, one, two
        first.answers.set()


def test_a_request_that_takes_too_long_is_done_by_the_next(servers: Servers) -> None:
    first, one, two = servers
    with TritonBackend([one, two], "fake", limits=RequestLimits(request_timeout_s=0.2)) as embedder:
        embedder.ensure_ready()
        first.answers.clear()
        for _ in range(3):
            _, report = embedder.encode(CROPS, timeout_s=10, return_source=True)
            assert [source.where for source in report.sources] == [two]
            assert "within 0.2 s" in report.refusals[0].reason
        asked = first.requests
        embedder.encode(CROPS)
    assert first.requests == asked, "after three in a row it is left alone"


def test_calls_that_run_out_of_time_at_a_silent_candidate_take_it_out(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "SILENCE_S", 0.1)
    first, one, two = servers
    with TritonBackend([one, two], "fake") as embedder:
        embedder.ensure_ready()
        first.answers.clear()
        for _ in range(3):
            with pytest.raises(DeadlineExceededError, match=r"the whole call, 0\.2 s, is over"):
                embedder.encode(CROPS, timeout_s=0.2)
        _, report = embedder.encode(CROPS, timeout_s=0.2, return_source=True)
    assert report.sources[0].where == two


def test_calls_with_short_deadlines_take_no_candidate_out(servers: Servers) -> None:
    first, one, two = servers
    with TritonBackend([one, two], "fake") as embedder:
        embedder.ensure_ready()
        first.answers.clear()
        for _ in range(5):
            with pytest.raises(DeadlineExceededError):
                embedder.encode(CROPS, timeout_s=0.05)
        first.answers.set()
        _, report = embedder.encode(CROPS, return_source=True)
    assert report.sources[0].where == one


def test_the_question_after_a_failure_does_not_outlast_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROBE_TIMEOUT_S", 15.0)
    fake = SecretiveTriton()
    with served(fake) as url, TritonBackend(url, "fake") as embedder:
        embedder.ensure_ready()
        fake.lists.clear()
        fake.failures = [grpc.StatusCode.INTERNAL]
        started = time.monotonic()
        try:
            with pytest.raises(DeadlineExceededError, match=r"the whole call, 0\.2 s, is over"):
                embedder.encode(CROPS, timeout_s=0.2)
            assert time.monotonic() - started < 8, "of 15 that the question may take"
        finally:
            fake.lists.set()


def test_a_model_that_hangs_at_its_golden_check_does_not_hide_the_others(servers: Servers) -> None:
    first, one, two = servers
    first.answers.clear()
    with TritonBackend([one, two], "fake", intervals=Intervals(check_s=0.3)) as embedder:
        started = time.monotonic()
        _, report = embedder.encode(CROPS, return_source=True)
        assert time.monotonic() - started < 10, "of 60 that a request has"
        assert [source.where for source in report.sources] == [two]
        assert "No answer" in report.refusals[0].reason
        asked = first.requests
        embedder.encode(CROPS)
        assert first.requests == asked, "it is left alone"


def test_a_golden_check_that_a_call_did_not_wait_for_goes_on(
    servers: Servers,
) -> None:
    first, one, _ = servers
    first.answers.clear()
    with TritonBackend(one, "fake", intervals=SELDOM) as embedder:
        with pytest.raises(DeadlineExceededError):
            embedder.encode(CROPS, timeout_s=0.2)
        first.answers.set()
        assert embedder.encode(CROPS, timeout_s=10).shape == (3, 512)


def test_a_call_without_time_for_the_list_of_models_takes_no_candidate_out() -> None:
    fake = SecretiveTriton()
    limits = RequestLimits(request_timeout_s=0.2)
    with served(fake) as url, TritonBackend(url, "fake", limits=limits, intervals=SELDOM) as embedder:
        embedder.ensure_ready()
        fake.lists.clear()
        fake.answers.clear()
        try:
            listed = rf"the whole call, 1 s, is over; 0 of 3 crops .* fake_onnx:1 at {url}: No answer"
            with pytest.raises(DeadlineExceededError, match=listed):
                embedder.encode(CROPS, timeout_s=1)
            assert [one.state for one in embedder.diagnostics().candidates] == ["serving"]
        finally:
            fake.answers.set()
            fake.lists.set()
        assert embedder.encode(CROPS, timeout_s=10).shape == (3, 512)


def test_a_first_caller_without_time_leaves_the_first_look_to_the_next(tmp_path: Path) -> None:
    fake = SecretiveTriton()
    with (
        served(fake) as url,
        TritonBackend(url, "fake", local=[local_tiny(tmp_path)], intervals=SELDOM) as embedder,
    ):
        fake.lists.clear()
        try:
            with pytest.raises(DeadlineExceededError, match=r"0\.2 s, is over; .* No candidate is known"):
                embedder.encode(CROPS, timeout_s=0.2)
        finally:
            fake.lists.set()
        _, report = embedder.encode(CROPS, return_source=True)
    assert [source.where for source in report.sources] == [url]
