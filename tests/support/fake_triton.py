"""A gRPC server that fails on demand, where the real Triton cannot be made to."""

from __future__ import annotations

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
    """

    def __init__(
        self,
        failures: tuple[grpc.StatusCode | None, ...] = (),
        value: float | None = 512**-0.5,
        model: str = "fake",
        max_batch_size: int = 64,
    ) -> None:
        self.failures = list(failures)
        self.value = value
        self.model = model
        self.max_batch_size = max_batch_size
        self.requests = 0
        self.answers = threading.Event()
        """Cleared, requests for embeddings hang, while all others are answered."""
        self.answers.set()

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=self.max_batch_size)
        config.input.add(name=INPUT_NAME, data_type=model_config_pb2.TYPE_UINT8, dims=CROP_SHAPE)
        config.output.add(name=OUTPUT_NAME, data_type=model_config_pb2.TYPE_FP32, dims=[EMBEDDING_DIM])
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        response.models.add(name=self.model, version="1", state="READY")
        return response

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests += 1
        self.answers.wait(20)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            context.abort(failure, "told to fail")
        count = request.inputs[0].shape[0]
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name=OUTPUT_NAME, datatype="FP32", shape=[count, EMBEDDING_DIM])
        if self.value is None:
            first_bytes = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(count, -1)[:, 0]
            embeddings = np.eye(EMBEDDING_DIM, dtype=np.float32)[first_bytes]
        else:
            embeddings = np.full((count, EMBEDDING_DIM), self.value, np.float32)
        response.raw_output_contents.append(embeddings.tobytes())
        return response


@contextmanager
def served(fake: FakeTriton) -> Iterator[str]:
    """Serve it on a free port of this machine, and give its address."""
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
