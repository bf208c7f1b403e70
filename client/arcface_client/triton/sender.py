"""Requests to one model by one connection, and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tritonclient.utils import InferenceServerException

from ..contract import Crops
from ..errors import ArcFaceError
from .channel import Connection
from .deadline import Deadline
from .protocol import Answer, ServedModel, answer_from, infer_arguments, served_model
from .request import Request
from .server_state import ServerStatus, models_from_index
from .status import CANCELLED, PROBE_TIMEOUT_S, Aftermath, Target, closed, dropped, explain, needs_aftermath


class Sender:
    """Sends batches to a model and reads the answers; what goes wrong becomes this project's errors.

    Args:
        target: The model.
        connection: To its server.
        request_timeout_s: Seconds that a single request may take.

    Attributes:
        served: What the server said of the model; None before the first call and after a failure.
        answered_by: The version that answered last; None when the server did not say.
    """

    def __init__(self, target: Target, connection: Connection, request_timeout_s: float) -> None:
        self.target = target
        self.served: ServedModel | None = None
        self.answered_by: int | None = None
        self._connection = connection
        self._request_timeout_s = request_timeout_s

    def model(self, deadline: Deadline) -> ServedModel:
        """What the server says of the model, asked for once."""
        served = self.served  # another thread's failure may set it to None at any time
        if served is None:
            timeout_s = deadline.remaining_s(self._request_timeout_s)
            names = (self.target.model, self.target.version_text)
            with self._explaining(timeout_s, deadline, self._connection.triton) as server:
                config = server.get_model_config(*names, client_timeout=timeout_s)
            served = self.served = served_model(self.target, config)
        return served

    def forget_model(self) -> None:
        """Ask for the model again next time."""
        self.served = None

    def server_status(self) -> ServerStatus:
        """Ask the server for its version, its readiness and its models."""
        timeout_s, target = self._request_timeout_s, Target(self.target.url)
        with self._explaining(timeout_s, Deadline(None), self._connection.triton, target) as server:
            metadata = server.get_server_metadata(client_timeout=timeout_s)
            ready = server.is_server_ready(client_timeout=timeout_s)
            index = server.get_model_repository_index(client_timeout=timeout_s)
        return ServerStatus(target.url, metadata.version, ready, models_from_index(index))

    def infer(self, crops: Crops, deadline: Deadline) -> Answer:
        """Embed one batch, and wait for it."""
        request = self._request(crops, deadline)
        arguments = infer_arguments(self.target, crops)
        with self._explaining(request.timeout_s, deadline, request.server) as server:
            return self._read(server.infer(client_timeout=request.timeout_s, **arguments), request)

    def send(self, crops: Crops, deadline: Deadline, target: Target) -> Request:
        """Send one batch, and do not wait."""
        request = self._request(crops, deadline)
        arguments = infer_arguments(target, crops)
        with self._explaining(request.timeout_s, deadline, request.server) as server:
            request.context = server.async_infer(
                callback=request.answered, client_timeout=request.timeout_s, **arguments
            )
        return request

    def answer(self, request: Request) -> Answer:
        """Wait for what was sent."""
        with self._explaining(request.timeout_s, request.deadline, request.server):
            return self._read(request.future.result(), request)

    def _request(self, crops: Crops, deadline: Deadline) -> Request:
        self._connection.made_here.check()
        timeout_s = deadline.remaining_s(self._request_timeout_s)
        return Request(crops, deadline, timeout_s, self._connection.triton)

    def _read(self, received: Any, request: Request) -> Answer:
        self._connection.answered()
        answer = answer_from(self.target, received, len(request.crops))
        self.answered_by = answer.version
        return answer

    @contextmanager
    def _explaining(
        self, timeout_s: float, deadline: Deadline, server: Any, target: Target | None = None
    ) -> Iterator[Any]:
        """Call tritonclient's methods in this context: what goes wrong becomes this project's errors."""
        target = target or self.target
        self._connection.made_here.check()
        if self._connection.closed:
            raise closed(target)
        try:
            yield server
        except InferenceServerException as error:
            raise self._explained(error, timeout_s, deadline, server, target) from error
        except ValueError as error:  # gRPC's word for a channel that is closed
            if self._connection.closed:
                raise closed(target) from error
            why = self._connection.why_dropped(server)
            if why is not None:
                raise dropped(target, why) from error
            raise

    def _explained(
        self,
        error: InferenceServerException,
        timeout_s: float,
        deadline: Deadline,
        server: Any,
        target: Target,
    ) -> ArcFaceError:
        # The server may have come back with another model of this name: look at it again next time.
        self.served = None
        if self._connection.closed:
            return closed(target)
        why = self._connection.why_dropped(server)
        if error.status() == CANCELLED and why is not None:
            return dropped(target, why)
        aftermath = Aftermath(answers=True)
        if needs_aftermath(error):
            aftermath = self._connection.ask(deadline.remaining_s(PROBE_TIMEOUT_S))
        return explain(error, target, aftermath, timeout_s=timeout_s)
