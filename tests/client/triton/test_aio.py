"""AsyncEmbeddingClient does what EmbeddingClient does."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_client import AsyncConnection, AsyncEmbeddingClient, EmbeddingClient
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ArcFaceError,
    ClientClosedError,
    ContractError,
    DeadlineExceededError,
    ModelChangedError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerBusyError,
)
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import until
from support.tiny import write_tiny_repository

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


def test_it_takes_the_same_arguments_and_has_the_same_methods() -> None:
    def arguments(method: Any) -> list[tuple[str, Any, Any]]:
        return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    # A request that is partly done is a matter of the pool alone, which uses threads.
    names = public(EmbeddingClient) - {"embed"}
    assert public(AsyncEmbeddingClient) == names
    for name in ("__init__", *sorted(names)):
        ours, theirs = getattr(AsyncEmbeddingClient, name), getattr(EmbeddingClient, name)
        assert isinstance(ours, property) == isinstance(theirs, property)
        if not isinstance(ours, property):
            assert arguments(ours) == arguments(theirs), name


def test_a_full_queue_is_told_from_no_server_where_models_are_not_listed(
    tmp_path: Path, crops: Crops
) -> None:
    write_tiny_repository(tmp_path, max_batch_size=1, work=30, queue=1)
    flags = ("--grpc-restricted-protocol=model-repository:key=value",)
    with LocalTriton(tmp_path, flags=flags, stop_timeout_s=1) as server:
        with (
            EmbeddingClient(server.grpc_url, TINY, max_in_flight=64) as client,
            pytest.raises(ServerBusyError),
        ):
            client.encode(crops)
        with pytest.raises(ServerBusyError):
            run(server.grpc_url, TINY, lambda client: client.encode(crops), max_in_flight=64)


def test_answers_of_two_versions_are_not_mixed(crops: Crops) -> None:
    class Moving(FakeTriton):
        def ModelInfer(self, request: Any, context: Any) -> Any:
            response = super().ModelInfer(request, context)
            response.model_version = str(self.requests)
            return response

    with (
        served(Moving(max_batch_size=2)) as url,
        pytest.raises(ModelChangedError, match="Version 2 answered in the middle of a call"),
    ):
        run(url, "fake", lambda client: client.encode(crops[:4]), max_in_flight=1)


def test_clients_share_a_connection_and_leave_it_open(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    async def share() -> Embeddings:
        connection = AsyncConnection(triton.grpc_url)
        async with AsyncEmbeddingClient(model="slow_onnx", connection=connection) as client:
            await client.ensure_ready()
        async with AsyncEmbeddingClient(model=TINY, connection=connection) as client:
            assert (client.max_batch_size, client.answered_by) == (None, None)
            embeddings = await client.encode(crops[:3])
            assert (client.max_batch_size, client.answered_by) == (32, 2)
            await connection.close()
            with pytest.raises(ClientClosedError):
                await client.encode(crops[:3])
        return embeddings

    np.testing.assert_allclose(asyncio.run(share()), expected[:3], atol=1e-6)


def test_many_calls_may_run_at_once(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    async def many(client: AsyncEmbeddingClient) -> list[Embeddings]:
        return await asyncio.gather(*(client.encode(crops[start:]) for start in range(20)))

    for start, embeddings in enumerate(run(triton.grpc_url, TINY, many)):
        np.testing.assert_allclose(embeddings, expected[start:], atol=1e-6)


def test_status_lists_the_models_as_the_other_client_does(triton: LocalTriton) -> None:
    status = run(triton.grpc_url, TINY, lambda client: client.status())
    assert status.ready
    assert len(status.models) == 5


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("none", ModelNotFoundError),
        ("broken_onnx", ModelNotReadyError),
        ("other", ContractError),
    ],
)
def test_an_unusable_model_raises_the_same_error_as_in_the_other_client(
    triton: LocalTriton, crops: Crops, model: str, error: type[ArcFaceError]
) -> None:
    with pytest.raises(error):
        run(triton.grpc_url, model, lambda client: client.encode(crops[:1]))
    with pytest.raises(error):
        run(triton.grpc_url, model, lambda client: client.ensure_ready())


def test_the_deadline_holds_for_the_whole_call(triton: LocalTriton, crops: Crops) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        run(triton.grpc_url, "slow_onnx", lambda client: client.encode(crops, timeout_s=1), max_in_flight=1)
    assert time.monotonic() - started < 6, "of 60 that a request has"


def run_on_hanging(call: Callable[[AsyncEmbeddingClient, FakeTriton], Coroutine[Any, Any, Any]]) -> None:
    """Call a server that takes requests and answers none."""
    fake = FakeTriton(max_batch_size=2)
    fake.answers.clear()
    with served(fake) as url:
        try:
            run(url, "fake", lambda client: call(client, fake))
        finally:
            fake.answers.set()


def test_a_cancelled_call_ends_its_requests(crops: Crops) -> None:
    async def cancel(client: AsyncEmbeddingClient, fake: FakeTriton) -> None:
        call = asyncio.create_task(client.encode(crops))
        await until(lambda: fake.requests == 8)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(asyncio.all_tasks()) == 1

    run_on_hanging(cancel)


def test_closing_ends_a_call_with_the_same_error(crops: Crops) -> None:
    async def close_during_call(client: AsyncEmbeddingClient, fake: FakeTriton) -> None:
        call = asyncio.create_task(client.encode(crops))
        await until(lambda: fake.requests == 8)
        await client.close()
        with pytest.raises(ClientClosedError):
            await call
        with pytest.raises(ClientClosedError):
            await client.status()

    run_on_hanging(close_during_call)


def test_a_stream_keeps_order(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    async def gather(client: AsyncEmbeddingClient) -> list[Embeddings]:
        return [embeddings async for embeddings in client.stream(iter(crops))]

    parts = run(triton.grpc_url, TINY, gather)
    assert [len(part) for part in parts] == [32, 32, 32, 4]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
