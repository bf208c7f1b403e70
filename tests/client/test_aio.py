"""AsyncEmbeddingClient does what EmbeddingClient does."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingClient
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ArcFaceError,
    ClientClosedError,
    ContractError,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerUnavailableError,
)
from arcface_server import LocalTriton

TINY = "tiny_onnx"
Call = Callable[[AsyncEmbeddingClient], Coroutine[Any, Any, Any]]


def run(url: str, model: str, call: Call, **limits: Any) -> Any:
    async def main() -> Any:
        async with AsyncEmbeddingClient(url, model, **limits) as client:
            return await call(client)

    return asyncio.run(main())


@pytest.mark.parametrize("count", [0, 1, 33, 100])
def test_any_number_of_crops_is_embedded_in_order(
    triton: LocalTriton, crops: Crops, expected: Embeddings, count: int
) -> None:
    embeddings = run(triton.grpc_url, TINY, lambda client: client.encode(crops[:count]))
    np.testing.assert_allclose(embeddings, expected[:count], atol=1e-6)


def test_many_calls_may_run_at_once(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    async def many(client: AsyncEmbeddingClient) -> list[Embeddings]:
        return await asyncio.gather(*(client.encode(crops[start:]) for start in range(20)))

    for start, embeddings in enumerate(run(triton.grpc_url, TINY, many)):
        np.testing.assert_allclose(embeddings, expected[start:], atol=1e-6)


def test_status_is_the_same(triton: LocalTriton) -> None:
    status = run(triton.grpc_url, TINY, lambda client: client.status())
    assert status.ready
    assert len(status.models) == 5


def test_status_of_a_server_that_hangs_speaks_of_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineExceededError, match=f"No answer from the server at {url} within 0.3 s"):
            run(url, TINY, lambda client: client.status(), request_timeout_s=0.3)


@pytest.mark.parametrize(
    ("model", "error"),
    [("none", ModelNotFoundError), ("broken_onnx", ModelNotReadyError), ("other", ContractError)],
)
def test_errors_are_the_same(
    triton: LocalTriton, crops: Crops, model: str, error: type[ArcFaceError]
) -> None:
    with pytest.raises(error):
        run(triton.grpc_url, model, lambda client: client.encode(crops[:1]))
    with pytest.raises(error):
        run(triton.grpc_url, model, lambda client: client.ensure_ready())


def test_no_server_is_said(crops: Crops) -> None:
    with pytest.raises(ServerUnavailableError):
        run("127.0.0.1:9", TINY, lambda client: client.encode(crops[:1]))


def test_the_deadline_holds_for_the_whole_call(triton: LocalTriton, crops: Crops) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        run(triton.grpc_url, "slow_onnx", lambda client: client.encode(crops, timeout_s=1), max_in_flight=1)
    assert time.monotonic() - started < 6, "of 60 that a request has"


def test_a_cancelled_call_ends_its_requests(triton: LocalTriton, crops: Crops) -> None:
    async def cancel(client: AsyncEmbeddingClient) -> None:
        await client.ensure_ready()
        call = asyncio.create_task(client.encode(crops))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(asyncio.all_tasks()) == 1

    run(triton.grpc_url, "slow_onnx", cancel)


def test_closing_ends_a_call_with_the_same_error(triton: LocalTriton, crops: Crops) -> None:
    async def close_during_call(client: AsyncEmbeddingClient) -> None:
        await client.ensure_ready()
        call = asyncio.create_task(client.encode(crops))
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(ClientClosedError):
            await call
        with pytest.raises(ClientClosedError):
            await client.status()

    run(triton.grpc_url, "slow_onnx", close_during_call)


def test_a_stream_keeps_order(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    async def gather(client: AsyncEmbeddingClient) -> list[Embeddings]:
        return [embeddings async for embeddings in client.stream(iter(crops))]

    parts = run(triton.grpc_url, TINY, gather)
    assert [len(part) for part in parts] == [32, 32, 32, 4]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)


def test_a_closed_client_says_so(triton: LocalTriton, crops: Crops) -> None:
    async def use_closed(client: AsyncEmbeddingClient) -> None:
        await client.close()
        await client.encode(crops[:1])

    with pytest.raises(ClientClosedError):
        run(triton.grpc_url, TINY, use_closed)
