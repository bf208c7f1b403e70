"""What a server says of itself and its models, and the error for a call that failed.

A status code alone does not tell a dead server from a full queue, nor a model that was never there from one
that could not be loaded. So after a failure the clients ask the server for its models once, and ``explain``
decides from both.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..errors import (
    AccessError,
    ArcFaceError,
    ClientClosedError,
    DeadlineExceededError,
    ModelLoadingError,
    ModelNotFoundError,
    ModelNotReadyError,
    NotReleasedError,
    RequestTooLargeError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from ..models.release import NOT_THE_RELEASE

if TYPE_CHECKING:
    from tritonclient.utils import InferenceServerException

PROBE_TIMEOUT_S: Final = 1.0
"""How long the question after a failure may take, in seconds."""

_UNAVAILABLE: Final = "StatusCode.UNAVAILABLE"
_DEADLINE_EXCEEDED: Final = "StatusCode.DEADLINE_EXCEEDED"
_NOT_FOUND: Final = "StatusCode.NOT_FOUND"
_CANCELLED: Final = "StatusCode.CANCELLED"
_UNAUTHENTICATED: Final = "StatusCode.UNAUTHENTICATED"
_PERMISSION_DENIED: Final = "StatusCode.PERMISSION_DENIED"
_RESOURCE_EXHAUSTED: Final = "StatusCode.RESOURCE_EXHAUSTED"

_RESTRICTED: Final = "This protocol is restricted"
"""Triton answers UNAVAILABLE with this where a restricted protocol's key is missing or wrong."""

_NO_MODEL_CONTROL: Final = "load / unload is not allowed"

_TOO_LARGE: Final = re.compile(
    "http2 header with status: 413|larger than max|(entity|payload) too large", re.I
)
"""What a proxy's 413 becomes in gRPC, and gRPC's own words."""

_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables in which gRPC looks for a proxy, which it then uses for localhost as well."""


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model, as the server's repository index lists it.

    Attributes:
        name: The model.
        version: Its version; None if it was never loaded.
        state: READY, UNAVAILABLE, LOADING or UNLOADING; empty if it was never loaded.
        reason: Why it is not ready, in the server's words.
        role: "release", "canary" or "not the release", also where another version was loaded in its place;
            None if that is not known.
    """

    name: str
    version: int | None
    state: str
    reason: str
    role: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.state == "READY"

    @property
    def problem(self) -> ArcFaceError | None:
        """Why it does not serve; None if it does."""
        if self.ready:
            return None
        if self.role == NOT_THE_RELEASE and _is_unloaded(self):
            return NotReleasedError("it is not the release, and is unloaded")
        if self.state in ("LOADING", "UNLOADING"):
            return ModelLoadingError(f"the server is {self.state.lower()} it; try again in a moment")
        load = (
            f"start the server with --load-model={self.name}, or send POST "
            f"/v2/repository/models/{self.name}/load to its HTTP port"
        )
        if self.reason == "unloaded":
            return ModelNotReadyError(f"the server was asked to unload it; {load}")
        if not self.state:
            return ModelNotReadyError(
                "the server was never asked to load it (explicit model control), or cannot read its "
                f"config.pbtxt; {load}"
            )
        return ModelNotReadyError(f"the server could not load it: {self.reason or 'its log says why'}")


@dataclass(frozen=True)
class ServerStatus:
    """A server and its models.

    Attributes:
        url: ``host:port`` of its gRPC service.
        version: Triton's version; None if it did not answer.
        ready: Whether it says that it is ready.
        models: Its models.
        problem: Why it did not answer; None if it did.
    """

    url: str
    version: str | None
    ready: bool
    models: Sequence[ModelStatus] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Reply:
    """A server's reply to the question for its models.

    Attributes:
        answers: Whether the server answered at all.
        models: Its models; None if it does not list them (a restricted protocol).
        problem: The error instead of them.
    """

    answers: bool
    models: Sequence[ModelStatus] | None = None
    problem: str = field(default="", compare=False)


@dataclass(frozen=True)
class Target:
    """A model on a server, or the server itself.

    Attributes:
        url: ``host:port`` of the server's gRPC service.
        model: The model; None for a question about the server itself.
        version: Its version; None for the newest that the server has ready.
    """

    url: str
    model: str | None = None
    version: int | None = None

    @property
    def version_text(self) -> str:
        """The version in Triton's protocol."""
        return "" if self.version is None else str(self.version)

    def __str__(self) -> str:
        if self.model is None:
            return f"the server at {self.url}"
        version = "" if self.version is None else f":{self.version}"
        return f"{self.model}{version} at {self.url}"


def models_from_index(response: Any) -> tuple[ModelStatus, ...]:
    """Read tritonclient's answer to ``get_model_repository_index``."""
    ready = {entry.name for entry in response.models if entry.state == "READY"}
    models = [
        ModelStatus(
            entry.name,
            int(entry.version) if entry.version else None,
            entry.state,
            # A Python backend puts its traceback behind the first line; the server's log has it.
            entry.reason.partition("\n")[0].strip(),
            NOT_THE_RELEASE if entry.name in ready and _is_unloaded(entry) else None,
        )
        for entry in response.models
    ]
    return tuple(sorted(models, key=lambda model: (model.name, model.version or 0)))


def _is_unloaded(entry: Any) -> bool:
    return bool(entry.reason == "unloaded" or entry.state == "UNLOADING")


def closed(target: Target) -> ClientClosedError:
    """The error for a client that was closed, before a call or during it."""
    return ClientClosedError(f"The client for {target} is closed; make a new one.")


def unanswered(url: str, problem: str) -> ServerUnavailableError:
    """The error for an address at which no server answers, or whose server is about to stop."""
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    hint = f" gRPC goes through the proxy of {proxy}, unless no_proxy names the host." if proxy else ""
    return ServerUnavailableError(
        f"No Triton server is ready at {url}: {problem}. Check that it runs, that this is its gRPC port, "
        f"and that TLS is set as on the server.{hint}"
    )


def answered(error: InferenceServerException) -> bool:
    """Whether an error comes from the server, and not from the way to it."""
    restricted = _RESTRICTED in (error.message() or "")
    return restricted or error.status() not in (_UNAVAILABLE, _DEADLINE_EXCEEDED, _CANCELLED)


def explain(
    error: InferenceServerException, target: Target, ask: Callable[[], Reply], *, timeout_s: float
) -> ArcFaceError:
    """Make the error to raise for a failed call.

    Args:
        error: tritonclient's error.
        target: Where the call went.
        ask: Asks the server for its models; not called if the time is up.
        timeout_s: Seconds that the failed request was given.
    """
    status, text = error.status(), error.message() or "no message"
    if status == _DEADLINE_EXCEEDED:
        seconds = f"{timeout_s:.3f}".rstrip("0").rstrip(".")
        return DeadlineExceededError(
            f"No answer from {target} within {seconds} s; allow more time, or look at the server's load."
        )
    if status in (_UNAUTHENTICATED, _PERMISSION_DENIED) or _RESTRICTED in text:
        return AccessError(
            f"Access to {target} is refused: {text.rstrip('.')}. Give the token or key that it wants, as "
            "triton.token_file or triton.metadata."
        )
    if _NO_MODEL_CONTROL in text:
        return ServerError(
            f"{target.url} loads no models on request ({text}); start it with --model-control-mode=explicit."
        )
    if _TOO_LARGE.search(text):
        return RequestTooLargeError(
            f"{target.url} takes no request of this size ({text}); set its limit, or that of the proxy "
            "before it, above 40 KB, which one crop takes."
        )
    reply = ask()
    if status == _UNAVAILABLE and not reply.answers:
        return unanswered(target.url, text)
    problem = model_error(target, reply.models)
    if problem is not None:
        return problem
    if status == _NOT_FOUND and target.model is not None:
        return ModelNotFoundError(f"There is no {target}: {text}")
    if status in (_UNAVAILABLE, _RESOURCE_EXHAUSTED):
        return ServerBusyError(
            f"The server refused a request for {target}, although it is running: {text}. Try again later."
        )
    return ServerError(f"A request for {target} failed: {text} ({status})")


def model_error(target: Target, models: Sequence[ModelStatus] | None) -> ArcFaceError | None:
    """The error for a model that is missing or not ready; None if it is ready or that is unknown."""
    if target.model is None or models is None:
        return None
    versions = [model for model in models if model.name == target.model]
    asked_for = [
        model for model in versions if target.version is None or model.version in (None, target.version)
    ]
    if not asked_for:
        known, what = {model.name for model in models}, "the server's models"
        if versions:
            known, what = {str(model.version) for model in versions}, "its versions"
        near = [] if versions else difflib.get_close_matches(target.model, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return ModelNotFoundError(
            f"There is no {target}; {what}: {', '.join(sorted(known)) or 'none'}.{hint}"
        )
    if any(model.ready for model in asked_for):
        return None
    # A version that is being loaded may serve soon, whatever became of the others.
    problem = min((model.problem for model in asked_for), key=lambda one: isinstance(one, ModelNotReadyError))
    return type(problem)(f"{target} does not serve: {problem}") if problem else None
