"""When candidates are examined, by a server whose embeddings a test can change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from arcface_client.errors import CallCancelledError, ModelLoadingError, ServerUnavailableError
from arcface_client.failover.discovery import Wanted
from arcface_client.failover.examiner import Examiner, no_records
from arcface_client.failover.intervals import BreakerLimits, Rhythm
from arcface_client.failover.pool import Selector
from arcface_client.failover.server import RequestLimits
from arcface_client.models.golden import GoldenReference, golden_crops
from arcface_client.triton.deadline import Deadline
from support.fake_triton import FakeTriton, served
from support.processes import wait_until

RIGHT = 512**-0.5
MakeSelector = Callable[[Rhythm], Selector]


@pytest.fixture
def fake() -> FakeTriton:
    return FakeTriton(model="fake_onnx", value=RIGHT)


@pytest.fixture
def make(fake: FakeTriton) -> Iterator[MakeSelector]:
    """Makes a selector with a record by which the fake is right at first."""
    reference = GoldenReference(np.full((len(golden_crops()), 512), RIGHT, np.float32))
    examiner = Examiner(lambda model, version: reference, 0.001)
    made: list[Selector] = []
    with served(fake) as url:

        def selector(rhythm: Rhythm) -> Selector:
            made.append(Selector(Wanted((url,), "fake"), examiner, RequestLimits(), rhythm))
            return made[-1]

        yield selector
        for one in made:
            one.close()


def serves(selector: Selector, *, afresh: bool = False) -> bool:
    return bool(selector.look(Deadline(None), afresh=afresh).ranking)


def test_who_drifted_is_examined_at_once_when_all_are_to_be(fake: FakeTriton, make: MakeSelector) -> None:
    selector = make(Rhythm())
    fake.value = -RIGHT
    assert not serves(selector)
    fake.value = RIGHT
    assert not serves(selector), "not before it is due"
    assert serves(selector, afresh=True)


def test_a_model_that_loads_or_unloads_under_a_call_has_to_settle(
    fake: FakeTriton, make: MakeSelector
) -> None:
    selector = make(Rhythm(breaker=BreakerLimits(wait_s=0.01)))
    assert serves(selector)
    (contender,) = selector.standing.ranking
    selector.failed(contender, ModelLoadingError("the server is just unloading it"))
    assert not selector.standing.ranking
    wait_until(lambda: contender.breaker.due)
    assert serves(selector)
    assert contender.breaker.state == "half-open"


def test_who_settled_has_its_place_again_only_after_the_golden_crops(
    fake: FakeTriton, make: MakeSelector
) -> None:
    selector = make(Rhythm(breaker=BreakerLimits(wait_s=0.01, settle_s=0.2)))
    assert serves(selector)
    (contender,) = selector.standing.ranking
    selector.failed(contender, ServerUnavailableError("gone"))
    assert not selector.standing.ranking
    wait_until(lambda: contender.breaker.due)
    assert serves(selector)
    fake.value = -RIGHT
    wait_until(lambda: contender.breaker.has_settled)
    assert not serves(selector)
    assert str(contender.breaker.state) == "open"


def test_a_handler_of_the_log_may_ask_for_the_reports(
    fake: FakeTriton, make: MakeSelector, caplog: pytest.LogCaptureFixture
) -> None:
    selector = make(Rhythm())
    heard: list[tuple[str, str, list[str]]] = []

    class Alert(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.name.startswith("arcface_client.failover"):
                states = [report.state for report in selector.reports()]
                heard.append((record.levelname, record.getMessage(), states))
            return True

    def come_and_go() -> None:
        assert serves(selector)
        (contender,) = selector.standing.ranking
        selector.failed(contender, ServerUnavailableError("gone"))

    with caplog.at_level(logging.INFO, "arcface_client"), caplog.filtering(Alert()):
        # In a thread of its own, which the test does without should it hang.
        thread = threading.Thread(target=come_and_go, daemon=True)
        thread.start()
        thread.join(10)
    assert not thread.is_alive()
    (name,) = (report.candidate for report in selector.reports())
    assert heard == [
        ("INFO", f"{name} serves", ["serving"]),
        ("WARNING", f"No candidate serves now, not {name}: gone", ["failing"]),
    ]


def test_who_cancels_a_look_says_nothing_against_a_candidate() -> None:
    deadline = Deadline(None)

    class CancelledMeanwhile(FakeTriton):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            deadline.cancel()
            return super().ModelInfer(request, context)

    first, second = CancelledMeanwhile(model="fake_onnx"), FakeTriton(model="fake_onnx")
    with served(first) as one, served(second) as two:
        selector = Selector(
            Wanted((one, two), "fake"), Examiner(no_records, 0.001), RequestLimits(), Rhythm()
        )
        with pytest.raises(CallCancelledError):
            selector.look(deadline)
        assert [report.reason for report in selector.reports()] == [None, "not examined yet"]
        selector.close()
