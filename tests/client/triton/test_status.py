"""Status codes to errors, for states that a real server is in only for a moment."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from arcface_client.errors import (
    AccessError,
    ArcFaceError,
    DeadlineExceededError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from arcface_client.triton.status import ModelStatus, Reply, Target, explain

TARGET = Target("localhost:8001", "arcface", 2)
SILENT = Reply(answers=False)
UNLISTED = Reply(answers=True)


def model(state: str, version: int | None = 2, name: str = "arcface") -> Reply:
    return Reply(answers=True, models=[ModelStatus(name, version, state, "why")])


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        ("UNAVAILABLE", SILENT, ServerUnavailableError),
        ("UNAVAILABLE", UNLISTED, ServerBusyError),
        ("UNAVAILABLE", model("READY"), ServerBusyError),
        ("UNAVAILABLE", model("UNAVAILABLE"), ModelNotReadyError),
        ("UNAVAILABLE", model("LOADING"), ModelLoadingError),
        ("UNAVAILABLE", model("UNLOADING"), ModelLoadingError),
        ("NOT_FOUND", UNLISTED, ModelNotFoundError),
        ("NOT_FOUND", model("READY", version=1), ModelNotFoundError),
        ("NOT_FOUND", model("READY", name="other"), ModelNotFoundError),
        ("DEADLINE_EXCEEDED", UNLISTED, DeadlineExceededError),
        ("INTERNAL", model("READY"), ServerError),
        ("INTERNAL", SILENT, ServerError),  # it had just answered with the error
        ("CANCELLED", model("READY"), ServerError),
        ("UNAUTHENTICATED", SILENT, AccessError),
        ("PERMISSION_DENIED", UNLISTED, AccessError),
        ("RESOURCE_EXHAUSTED", model("READY"), ServerBusyError),
    ],
)
def test_status_and_reply_decide(status: str, reply: Reply, expected: type[ArcFaceError]) -> None:
    error = InferenceServerException("told to fail", status=f"StatusCode.{status}")
    explained = explain(error, TARGET, lambda: reply, timeout_s=1234.5)
    assert type(explained) is expected
    assert "localhost:8001" in str(explained)
    if expected is DeadlineExceededError:
        assert "within 1234.5 s" in str(explained)


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        ("UNAVAILABLE", model("LOADING"), ServerBusyError),
        ("NOT_FOUND", model("READY"), ServerError),
    ],
)
def test_the_models_do_not_explain_a_failed_question_about_the_server(
    status: str, reply: Reply, expected: type[ArcFaceError]
) -> None:
    error = InferenceServerException("told to fail", status=f"StatusCode.{status}")
    explained = explain(error, Target("localhost:8001"), lambda: reply, timeout_s=1)
    assert type(explained) is expected
    assert "the server at localhost:8001" in str(explained)
