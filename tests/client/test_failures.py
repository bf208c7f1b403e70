"""From status codes to errors, for what a real server cannot be held in long enough."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from arcface_client.errors import (
    ArcFaceError,
    DeadlineExceededError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from arcface_client.triton.server_state import ModelStatus
from arcface_client.triton.status import (
    Aftermath,
    Target,
    aftermath_of_failed_probe,
    explain,
    may_be_restricted,
)

TARGET = Target("localhost:8001", "arcface", 2)
SILENT = Aftermath(answers=False)
DISCREET = Aftermath(answers=True)


def model(state: str, version: int | None = 2, name: str = "arcface") -> Aftermath:
    return Aftermath(answers=True, models=[ModelStatus(name, version, state, "why")])


@pytest.mark.parametrize(
    ("status", "aftermath", "expected"),
    [
        ("UNAVAILABLE", SILENT, ServerUnavailableError),
        ("UNAVAILABLE", DISCREET, ServerBusyError),
        ("UNAVAILABLE", model("READY"), ServerBusyError),
        ("UNAVAILABLE", model("UNAVAILABLE"), ModelNotReadyError),
        ("UNAVAILABLE", model("LOADING"), ModelLoadingError),
        ("UNAVAILABLE", model("UNLOADING"), ModelLoadingError),
        ("NOT_FOUND", DISCREET, ModelNotFoundError),
        ("NOT_FOUND", model("READY", version=1), ModelNotFoundError),
        ("NOT_FOUND", model("READY", name="other"), ModelNotFoundError),
        ("DEADLINE_EXCEEDED", DISCREET, DeadlineExceededError),
        ("INTERNAL", model("READY"), ServerError),
        ("INTERNAL", SILENT, ServerError),  # it answered a moment ago, and said why it failed
        ("CANCELLED", model("READY"), ServerError),
    ],
)
def test_status_and_aftermath_decide(status: str, aftermath: Aftermath, expected: type[ArcFaceError]) -> None:
    error = InferenceServerException("told to fail", status=f"StatusCode.{status}")
    explained = explain(error, TARGET, aftermath, timeout_s=1234.5)
    assert type(explained) is expected
    assert "localhost:8001" in str(explained)
    if expected is DeadlineExceededError:
        assert "within 1234.5 s" in str(explained)


@pytest.mark.parametrize(
    ("status", "aftermath", "expected", "message"),
    [
        ("UNAVAILABLE", SILENT, ServerUnavailableError, "No Triton server is ready at localhost:8001"),
        (
            "UNAVAILABLE",
            model("LOADING"),
            ServerBusyError,
            "A request for the server at localhost:8001 was not",
        ),
        (
            "DEADLINE_EXCEEDED",
            DISCREET,
            DeadlineExceededError,
            "No answer from the server at localhost:8001 ",
        ),
        ("NOT_FOUND", model("READY"), ServerError, "A request for the server at localhost:8001 failed: told"),
    ],
)
def test_a_question_about_the_server_is_not_about_a_model(
    status: str, aftermath: Aftermath, expected: type[ArcFaceError], message: str
) -> None:
    error = InferenceServerException("told to fail", status=f"StatusCode.{status}")
    explained = explain(error, Target("localhost:8001"), aftermath, timeout_s=1)
    assert type(explained) is expected
    assert str(explained).startswith(message)


@pytest.mark.parametrize(
    ("status", "is_live", "expected"),
    [
        ("UNAVAILABLE", True, DISCREET),  # what Triton says of a restricted protocol
        ("UNAVAILABLE", False, SILENT),
        ("DEADLINE_EXCEEDED", False, SILENT),
        ("CANCELLED", False, SILENT),
        ("UNIMPLEMENTED", False, DISCREET),
        ("PERMISSION_DENIED", False, DISCREET),  # what a proxy may say
    ],
)
def test_a_probe_that_is_refused_is_an_answer(status: str, is_live: bool, expected: Aftermath) -> None:
    error = InferenceServerException("no", status=f"StatusCode.{status}")
    assert aftermath_of_failed_probe(error, is_live=is_live) == expected
    assert may_be_restricted(error) == (status == "UNAVAILABLE")
