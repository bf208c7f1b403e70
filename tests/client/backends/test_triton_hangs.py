"""Servers that hang: they take connections and crops, and say nothing."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeadlineExceededError
from arcface_client.failover.intervals import Intervals
from arcface_client.triton.limits import RequestLimits
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import (
    NAME,
    PLAN,
    QUICK,
    Pair,
    Recorded,
    in_the_middle,
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


def test_many_calls_to_a_single_server_that_hangs_end_with_their_deadline(pair: Pair, many: Crops) -> None:
    calls = 8
    with TritonBackend(pair[0].grpc_url, NAME) as embedder, ThreadPoolExecutor(calls) as pool:
        embedder.ensure_ready()
        started = time.monotonic()
        with stopped(pair[0]):
            futures = [pool.submit(embedder.encode, many[:32], timeout_s=2) for _ in range(calls)]
            errors = [future.exception(timeout=20) for future in futures]
            took_s = time.monotonic() - started
    assert all(isinstance(error, DeadlineExceededError) for error in errors)
    assert took_s < 4


def test_a_server_that_is_back_is_asked_though_another_one_has_used_up_the_patience(
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


def test_a_server_that_hangs_while_it_is_examined_does_not_hold_the_first_call(
    pair: Pair, many: Crops
) -> None:
    hung, other = pair

    def stop(model: str, version: int) -> None:
        """Called between the list of models and the examination."""
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
