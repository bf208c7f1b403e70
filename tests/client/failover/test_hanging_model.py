"""A model that hangs while its server is alive: only calls can tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE
from arcface_client.errors import DeadlineExceededError
from arcface_client.failover import run as fallback
from arcface_client.failover.intervals import Intervals
from arcface_client.triton import client
from arcface_client.triton.limits import RequestLimits
from support.fake_triton import FakeTriton, served
from support.siblings import SELDOM, local_tiny

pytestmark = pytest.mark.faults

CROPS = np.zeros((3, *CROP_SHAPE), np.uint8)


class SecretiveTriton(FakeTriton):
    """Does not say what models it has, while it is told not to."""

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


def test_an_impatient_caller_takes_nobody_out(servers: Servers) -> None:
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


def test_an_examination_that_a_caller_had_no_time_for_says_nothing_of_the_candidate(
    servers: Servers,
) -> None:
    first, one, _ = servers
    first.answers.clear()
    with TritonBackend(one, "fake", intervals=SELDOM) as embedder:
        with pytest.raises(DeadlineExceededError):
            embedder.encode(CROPS, timeout_s=0.2)
        first.answers.set()
        assert embedder.encode(CROPS, timeout_s=10).shape == (3, 512)


def test_a_caller_without_time_for_the_list_of_models_takes_nobody_out() -> None:
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
