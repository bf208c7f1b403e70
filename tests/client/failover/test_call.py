"""What one call remembers: who did how much of it, and how long it is worth going on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.contract import CROP_SHAPE
from arcface_client.errors import (
    ArcFaceError,
    DeploymentError,
    ModelLoadingError,
    NoCandidateError,
    NoCandidateNowError,
    ServerBusyError,
    ServerUnavailableError,
)
from arcface_client.failover.call import RECONNECT_S, Call, nobody
from arcface_client.observability.served import Refusal, Source
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.embed_request import EmbedRequest

PATIENCE_S = 60.0
GONE = ServerUnavailableError("gone")
BUSY = ServerBusyError("full")
LOADING = ModelLoadingError("loading")
WRONG = DeploymentError("drifts")


@pytest.fixture
def call() -> Call:
    return new_call()


def new_call() -> Call:
    return Call(EmbedRequest(np.zeros((9, *CROP_SHAPE), np.uint8), Deadline(None)), PATIENCE_S)


def source(where: str) -> Source:
    return Source("triton", "tiny_trt", 1, where, 0)


@given(st.lists(st.tuples(st.sampled_from(["one:1", "two:2", "three:3"]), st.integers(0, 50))))
def test_everybody_is_credited_with_all_that_he_did_in_the_order_in_which_he_began(
    work: list[tuple[str, int]],
) -> None:
    call = new_call()
    for where, crops in work:
        call.credit(source(where), crops)
    sources = call.served("last", (), ()).sources
    began = list(dict.fromkeys(where for where, crops in work if crops))
    assert [each.where for each in sources] == began
    for each in sources:
        assert each.crops == sum(crops for where, crops in work if where == each.where)


def test_a_call_that_two_had_a_part_in_fell_back_though_the_first_ended_it(call: Call) -> None:
    call.credit(source("one:1"), 5)
    call.failures["one"] = GONE
    assert not call.served("one", (), ()).fell_back
    call.credit(source("two:2"), 3)
    call.credit(source("one:1"), 1)
    served = call.served("one", (), ())
    assert served.refusals == ()
    assert served.fell_back


def test_who_has_all_of_his_missing_again_is_no_source_and_made_no_headway(call: Call) -> None:
    call.credit(source("one:1"), 5)
    call.credit(source("one:1"), -5)
    call.credit(source("two:2"), 9)
    assert [(each.where, each.crops) for each in call.served("two", (), ()).sources] == [("two:2", 9)]
    lost = new_call()
    lost.credit(source("one:1"), 5)
    moved_at = lost._moved_at
    lost.credit(source("one:1"), -5)
    assert lost._moved_at == moved_at
    assert lost.patience_s({"one": GONE}) == RECONNECT_S


@pytest.mark.parametrize(
    ("errors", "fresh_s", "begun_s"),
    [
        ([GONE], RECONNECT_S, PATIENCE_S),
        ([GONE, WRONG], RECONNECT_S, PATIENCE_S),
        ([BUSY], PATIENCE_S, PATIENCE_S),
        ([LOADING, GONE], PATIENCE_S, PATIENCE_S),
        ([WRONG], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
    ids=["gone", "gone or wrong", "full", "loading or gone", "wrong", "nobody"],
)
def test_a_call_waits_the_longer_for_who_may_come_back_when_it_has_embeddings_to_lose(
    call: Call, errors: list[ArcFaceError], fresh_s: float, begun_s: float
) -> None:
    reasons = {str(number): error for number, error in enumerate(errors)}
    assert call.patience_s(reasons) == fresh_s
    call.credit(source("one:1"), 0)
    assert call.patience_s(reasons) == fresh_s
    call.credit(source("one:1"), 1)
    assert call.patience_s(reasons) == begun_s


@pytest.mark.parametrize("error", [GONE, BUSY, LOADING])
def test_a_call_with_a_deadline_waits_until_then_for_what_may_soon_be_over(error: ArcFaceError) -> None:
    call = Call(EmbedRequest(np.zeros((9, *CROP_SHAPE), np.uint8), Deadline(5)), PATIENCE_S)
    assert call.patience_s({"one": error, "two": WRONG}) == math.inf
    assert call.patience_s({"two": WRONG}) == 0


def test_what_is_known_now_goes_before_what_the_call_met_with(call: Call) -> None:
    call.failures = {"one": GONE, "two": BUSY}
    assert call.reasons([("one", WRONG), ("three", WRONG)]) == {"one": WRONG, "two": BUSY, "three": WRONG}


def test_the_report_names_the_preferred_who_failed_or_were_out_but_not_who_served_after_all(
    call: Call,
) -> None:
    call.failures = {"one": GONE, "two": BUSY, "three": BUSY}
    assert call.served("two", [Refusal("none", "refused")], ["none", "one"]).refusals == (
        Refusal("none", "refused"),
        Refusal("one", "gone"),
    )


def test_the_error_for_a_call_that_nobody_served_says_whether_trying_later_may_help() -> None:
    assert isinstance(nobody({"one": WRONG, "two": GONE}), NoCandidateNowError)
    assert isinstance(nobody({"one": WRONG}), NoCandidateError)
    assert isinstance(nobody({}), NoCandidateError)
