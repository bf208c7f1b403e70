"""A gRPC server that fails on demand, where the real Triton cannot be made to."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with unit vectors, after it has failed as often as it was told to.

    Args:
        failures: Status codes for the first requests, in their order; None lets one pass.
        value: What the embeddings are made of; None gives a crop whose first byte is n the n-th unit vector.
        model: The model that it lists, in version 1.
        max_batch_size: That model's largest batch.
        most_crops: How many crops a request may have; as through a proxy, a larger one is refused with 413.
        token: The bearer token that it wants; None wants none.
        empty: Whether answers have no data, as those of Triton 2.51 with numpy 2.
        nan: With ``value`` None, whether a crop whose second byte is 255 is answered with NaN.
    """

    def __init__(
        self,
        failures: tuple[grpc.StatusCode | None, ...] = (),
        value: float | None = 512**-0.5,
        model: str = "fake",
        max_batch_size: int = 64,
        most_crops: float = math.inf,
        token: str | None = None,
        nan: bool = True,
        empty: bool = False,
    ) -> None:
        self.empty = empty
        self.nan = nan
        self.token = token
        self.counts: list[int] = []
        """How many crops each request had."""
        self.most_crops = most_crops
        self.refused = 0
        """How many requests had too many."""
        self.failures = list(failures)
        self.value = value
        self.model = model
        self.max_batch_size = max_batch_size
        self.requests = 0
        self.answers = threading.Event()
        """Cleared, requests for embeddings hang, while all others are answered."""
        self.answers.set()

    def _check_token(self, context: grpc.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get("authorization")
        if self.token is not None and given is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        if self.token is not None and given != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "another token")

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check_token(context)
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=self.max_batch_size)
        config.input.add(name=INPUT_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=CROP_SHAPE)
        config.output.add(name=OUTPUT_NAME, data_type=model_config_pb2.TYPE_FP32, dims=[EMBEDDING_DIM])
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check_token(context)
        response = service_pb2.RepositoryIndexResponse()
        response.models.add(name=self.model, version="1", state="READY")
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check_token(context)
        self.requests += 1
        self.counts.append(request.inputs[0].shape[0])
        self.answers.wait(20)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            context.abort(failure, "told to fail")
        count = request.inputs[0].shape[0]
        if count > self.most_crops:
            self.refused += 1
            context.abort(grpc.StatusCode.UNKNOWN, "Received http2 header with status: 413")
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name=OUTPUT_NAME, datatype="FP32", shape=[count, EMBEDDING_DIM])
        if self.value is None:
            crops = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(count, -1)
            embeddings = np.eye(EMBEDDING_DIM, dtype=np.float32)[crops[:, 0]]
            if self.nan:
                embeddings[crops[:, 1] == 255, 3] = np.nan
        else:
            embeddings = np.full((count, EMBEDDING_DIM), self.value, np.float32)
        response.raw_output_contents.append(b"" if self.empty else embeddings.tobytes())
        return response


@contextmanager
def served(fake: FakeTriton, address: str = "127.0.0.1:0", largest_bytes: int = -1) -> Iterator[str]:
    """Serve it, by default on a free port of this machine, and give its address."""
    options = [("grpc.max_receive_message_length", largest_bytes), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(16), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    finally:
        server.stop(grace=None).wait()
