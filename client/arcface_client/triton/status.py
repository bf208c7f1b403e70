"""From a failed call to an error that says what to do: status codes in, ``arcface_client.errors`` out.

A status code alone does not tell a dead server from a full queue, nor a model that was never there
from one that could not be loaded. So after a failure the clients ask the server for its models once,
and ``explain`` puts both together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tritonclient.utils import InferenceServerException

from ..errors import (
    ArcFaceError,
    ClientClosedError,
    DeadlineExceededError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from .server_state import ModelStatus

PROBE_TIMEOUT_S: Final = 1.0
"""How long the question after a failure may take, in seconds."""

UNAVAILABLE: Final = "StatusCode.UNAVAILABLE"
DEADLINE_EXCEEDED: Final = "StatusCode.DEADLINE_EXCEEDED"
NOT_FOUND: Final = "StatusCode.NOT_FOUND"
CANCELLED: Final = "StatusCode.CANCELLED"

_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC looks for a proxy, which it then uses for localhost as well."""


@dataclass(frozen=True)
class Target:
    """Where a request went.

    Attributes:
        url: ``host:port`` of the server's gRPC service.
        model: The model; None for a question about the server itself.
        version: Its version; None for whichever the server takes.
    """

    url: str
    model: str | None = None
    version: int | None = None

    @property
    def version_text(self) -> str:
        """The version as Triton's protocol wants it: empty for the newest that is ready."""
        return "" if self.version is None else str(self.version)

    def __str__(self) -> str:
        if self.model is None:
            return f"the server at {self.url}"
        version = "" if self.version is None else f" version {self.version}"
        return f"model {self.model}{version} at {self.url}"


def closed(target: Target) -> ClientClosedError:
    """The error for a client that is closed, before a call or during it."""
    return ClientClosedError(f"The client for {target} is closed; make a new one.")


def dropped(target: Target, why: str) -> ServerUnavailableError:
    """The error for a call whose connection was dropped under it."""
    return ServerUnavailableError(f"The connection to {target.url} was dropped: {why}.")


def unanswered(url: str, said: str) -> ServerUnavailableError:
    """The error for an address at which nothing answers, or a server that is just ending.

    gRPC has one status for both.
    """
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    hint = f" gRPC goes through the proxy of {proxy}, unless no_proxy names the host." if proxy else ""
    return ServerUnavailableError(
        f"No Triton server is ready at {url}: {said}. Is it running, is this its gRPC port, "
        f"and is TLS as it wants it?{hint}"
    )


@dataclass(frozen=True)
class Aftermath:
    """What the server said when it was asked after a failure.

    Attributes:
        answers: It answered at all.
        models: Its models; None when it does not tell (a restricted protocol).
        said: What was said instead of them.
    """

    answers: bool
    models: Sequence[ModelStatus] | None = None
    said: str = field(default="", compare=False)


def aftermath_of_failed_probe(error: InferenceServerException, *, is_live: bool = False) -> Aftermath:
    """What it means that the question itself failed: no server, or one that does not tell.

    Args:
        error: tritonclient's error.
        is_live: The server is known to be there.
    """
    answers = is_live or error.status() not in (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED)
    return Aftermath(answers, said=error.message() or "no message")


def may_be_restricted(error: InferenceServerException) -> bool:
    """Whether a question may have failed because it is not allowed: then the server is live all the same.

    Triton refuses a restricted protocol with the status of a server that is not there.
    """
    return bool(error.status() == UNAVAILABLE)


def needs_aftermath(error: InferenceServerException) -> bool:
    """Whether asking the server would tell more than the status does."""
    return bool(error.status() != DEADLINE_EXCEEDED)


def explain(
    error: InferenceServerException, target: Target, aftermath: Aftermath, *, timeout_s: float
) -> ArcFaceError:
    """Make the error to raise for a failed call.

    Args:
        error: tritonclient's error.
        target: Where the call went.
        aftermath: What the server said afterwards.
        timeout_s: The time that the failed request had.
    """
    status, text = error.status(), error.message() or "no message"
    if status == DEADLINE_EXCEEDED:
        seconds = f"{timeout_s:.3f}".rstrip("0").rstrip(".")
        return DeadlineExceededError(
            f"No answer from {target} within {seconds} s; allow more time, or see what holds it up."
        )
    if status == UNAVAILABLE and not aftermath.answers:
        return unanswered(target.url, text)
    if aftermath.models is not None:
        model_error = _model_error(target, aftermath.models)
        if model_error is not None:
            return model_error
    if status == NOT_FOUND and target.model is not None:
        return ModelNotFoundError(f"There is no {target}: {text}")
    if status == UNAVAILABLE:
        return ServerBusyError(
            f"A request for {target} was not taken, though the server is there: {text}. Try again later."
        )
    return ServerError(f"A request for {target} failed: {text} ({status})")


def _model_error(target: Target, models: Sequence[ModelStatus]) -> ArcFaceError | None:
    """The error for a model that is not there or not ready; None when it is, or none was asked for."""
    if target.model is None:
        return None
    versions = [model for model in models if model.name == target.model]
    if not versions:
        names = ", ".join(sorted({model.name for model in models})) or "none"
        return ModelNotFoundError(f"There is no {target}; the server's models: {names}.")
    candidates = [model for model in versions if target.version in (None, model.version)]
    if not candidates:
        known = ", ".join(str(model.version) for model in versions)
        return ModelNotFoundError(f"There is no {target}; its versions: {known}.")
    if any(model.ready for model in candidates):
        return None
    if any(model.state in ("LOADING", "UNLOADING") for model in candidates):
        return ModelLoadingError(f"The server is just loading {target}; try again in a moment.")
    reason = candidates[-1].reason or "the server's log says why"
    return ModelNotReadyError(f"The server could not load {target}: {reason}")
