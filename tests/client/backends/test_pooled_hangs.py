"""Servers and models that hang: they take crops, and say nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import DeadlineExceededError
from arcface_client.failover import call as fallback
from arcface_client.failover.replica import Intervals
from arcface_client.triton.limits import RequestLimits
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.siblings import (
    NAME,
    PLAN,
    QUICK,
    Pair,
    in_the_middle,
    serving,
    stopped,
    urls,
)

pytestmark = pytest.mark.faults


def test_a_server_that_hangs_does_not_hold_a_call_that_another_can_serve(
    pair: Pair, many: Crops, many_truth: Embeddings
) -> None:
    with TritonBackend(urls(pair), NAME, intervals=QUICK) as embedder:
        embedder.ensure_ready()
        started = time.monotonic()
        try:
            embeddings, served = in_the_middle(embedder, many, signal.SIGSTOP, pair[0])
        finally:
            os.kill(pair[0].pid, signal.SIGCONT)
        took_s = time.monotonic() - started
        np.testing.assert_allclose(embeddings, many_truth, atol=1e-6)
        assert [source.where for source in served.sources] == urls(pair)
        assert "did not say within 0.5 s that it is alive" in served.refusals[0].reason
        assert took_s < 15  # of 30 that the call had, and 60 that a request has
        wait_until(lambda: serving(embedder) == f"{PLAN}:1 at {pair[0].grpc_url}")


def test_a_server_that_hangs_does_not_hold_many_calls_that_begin_then(
    pair: Pair, many: Crops, many_truth: Embeddings
) -> None:
    """More than its socket takes: what is stuck there has to end in time, too."""
    calls = 8
    with TritonBackend(urls(pair), NAME, intervals=QUICK) as embedder, ThreadPoolExecutor(calls) as pool:
        embedder.ensure_ready()
        started = time.monotonic()
        with stopped(pair[0]):
            futures = [pool.submit(embedder.encode, many[:16], timeout_s=8) for _ in range(calls)]
            results = [future.result(timeout=20) for future in futures]
            took_s = time.monotonic() - started
    for embeddings in results:
        np.testing.assert_allclose(embeddings, many_truth[:16], atol=1e-6)
    assert took_s < 8


CROPS = np.zeros((3, *CROP_SHAPE), np.uint8)


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


@pytest.mark.parametrize(("silence_s", "is_left"), [(0.1, True), (5.0, False)])
def test_calls_that_run_out_of_time_take_a_candidate_out_only_if_it_was_silent_for_long(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, silence_s: float, is_left: bool
) -> None:
    monkeypatch.setattr(fallback, "SILENCE_S", silence_s)
    first, one, two = servers
    with TritonBackend([one, two], "fake") as embedder:
        embedder.ensure_ready()
        first.answers.clear()
        for _ in range(3):
            with pytest.raises(DeadlineExceededError, match=r"the whole call, 0\.2 s, is over"):
                embedder.encode(CROPS, timeout_s=0.2)
        if not is_left:
            first.answers.set()
        _, report = embedder.encode(CROPS, timeout_s=10, return_source=True)
    assert report.sources[0].where == (two if is_left else one)


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
