"""A call that several servers share: whatever fails, every crop has its own embedding, in its place."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcface_client.backends.pooled import TritonBackend
from arcface_client.errors import NoCandidateError
from arcface_client.failover.call import BUSY_WAITS_S
from arcface_client.triton.limits import RequestLimits
from support.fake_triton import FakeTriton, served
from support.numbered import numbered, unit_vectors

FAILURES = (None, None, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


@pytest.fixture(scope="module")
def fakes() -> Iterator[list[tuple[FakeTriton, str]]]:
    """Three servers of two crops a batch; each crop's embedding tells its number."""
    first, second, last = (FakeTriton(value=None, model="fake_onnx", max_batch_size=2) for _ in range(3))
    with served(first) as one, served(second) as two, served(last) as three:
        yield [(first, one), (second, two), (last, three)]


failing = st.lists(st.sampled_from(FAILURES), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 8), failing, failing)
def test_whatever_fails_nothing_is_lost_doubled_or_misplaced(
    fakes: list[tuple[FakeTriton, str]],
    count: int,
    max_in_flight: int,
    first: list[grpc.StatusCode | None],
    second: list[grpc.StatusCode | None],
) -> None:
    limits = RequestLimits(max_in_flight=max_in_flight)
    with TritonBackend([url for _, url in fakes], "fake", limits=limits) as embedder:
        embedder.ensure_ready()
        fakes[0][0].failures, fakes[1][0].failures = list(first), list(second)
        try:
            embeddings, report = embedder.encode(numbered(count), return_source=True)
        finally:
            fakes[0][0].failures, fakes[1][0].failures = [], []
    np.testing.assert_array_equal(embeddings, unit_vectors(count))
    assert sum(source.crops for source in report.sources) == count


def test_what_was_answered_is_not_asked_again(fakes: list[tuple[FakeTriton, str]]) -> None:
    (first, one), (second, two) = fakes[:2]
    with TritonBackend([one, two], "fake", limits=RequestLimits(max_in_flight=1)) as embedder:
        embedder.ensure_ready()
        before = second.requests
        first.failures = [None, None, grpc.StatusCode.INTERNAL]
        _, report = embedder.encode(numbered(10), return_source=True)
    assert [(source.where, source.crops) for source in report.sources] == [(one, 4), (two, 6)]
    assert second.requests - before == 3
    assert [refusal.candidate for refusal in report.refusals] == [f"fake_onnx:1 at {one}"]


def test_crops_that_every_candidate_fails_on_do_not_take_the_candidates_out(
    fakes: list[tuple[FakeTriton, str]],
) -> None:
    (first, one), (second, two) = fakes[:2]
    with TritonBackend([one, two], "fake") as embedder:
        embedder.ensure_ready()
        for _ in range(5):
            first.failures, second.failures = [grpc.StatusCode.INTERNAL], [grpc.StatusCode.INTERNAL]
            with pytest.raises(NoCandidateError, match="told to fail"):
                embedder.encode(numbered(1))
        _, report = embedder.encode(numbered(1), return_source=True)
    assert not report.fell_back


def test_a_fallback_within_a_call_is_logged_once_a_minute(
    fakes: list[tuple[FakeTriton, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (first, one), (_, two) = fakes[:2]
    with TritonBackend([one, two], "fake") as embedder:
        embedder.ensure_ready()
        for _ in range(2):
            first.failures = [grpc.StatusCode.UNAVAILABLE] * (1 + len(BUSY_WAITS_S))
            try:
                _, report = embedder.encode(numbered(1), return_source=True)
            finally:
                first.failures = []
            assert report.sources[0].where == two
        assert embedder.diagnostics().candidates[0].state == "serving"
    (record,) = (record for record in caplog.records if "to the next replica" in record.message)
    assert record.levelname == "WARNING"
    assert record.message.startswith(f"fake_onnx:1 at {one} leaves a call to the next replica: ")
    assert "refused a request" in record.message
