"""AsyncEmbeddingClient does what EmbeddingClient does."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingClient, Connection, EmbeddingClient
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ClientClosedError,
    ContractError,
    DeadlineExceededError,
)
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import until

TINY = "tiny_onnx"
Call = Callable[[AsyncEmbeddingClient], Coroutine[Any, Any, Any]]


def run(url: str, model: str, call: Call, **limits: Any) -> Any:
    async def main() -> Any:
        async with AsyncEmbeddingClient(url, model, **limits) as client:
            return await call(client)

    return asyncio.run(main())


def test_clients_share_a_connection_and_leave_it_open(triton: LocalTriton, crops: Crops) -> None:
    async def share(connection: Connection) -> None:
        async with AsyncEmbeddingClient(model="narrow_onnx", connection=connection) as client:
            assert (await client.encode([])).shape == (0, 128)
            assert (await client.encode(crops[:3])).shape == (3, 128)
        async with AsyncEmbeddingClient(model=TINY, connection=connection) as client:
            assert (client.max_batch_size, client.answered_by) == (None, None)
            await client.encode(crops[:3])
            assert (client.max_batch_size, client.answered_by) == (32, 2)
            assert (await client.status()).ready
            connection.close()
            with pytest.raises(ClientClosedError):
                await client.encode(crops[:3])

    asyncio.run(share(Connection(triton.grpc_url)))


def test_an_unusable_model_raises_the_same_error_as_in_the_other_client(triton: LocalTriton) -> None:
    with pytest.raises(ContractError):
        run(triton.grpc_url, "other", lambda client: client.ensure_ready())


def test_it_takes_the_same_arguments_and_has_the_same_methods() -> None:
    def arguments(method: Any) -> list[tuple[str, Any, Any]]:
        return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    # A request that is partly done is a matter of the pool alone, which uses threads.
    names = public(EmbeddingClient) - {"embed_request"}
    assert public(AsyncEmbeddingClient) == names
    for name in ("__init__", *sorted(names)):
        ours, theirs = getattr(AsyncEmbeddingClient, name), getattr(EmbeddingClient, name)
        assert isinstance(ours, property) == isinstance(theirs, property)
        if not isinstance(ours, property):
            assert arguments(ours) == arguments(theirs), name


def test_many_calls_may_run_at_once(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    async def many(client: AsyncEmbeddingClient) -> list[Embeddings]:
        return await asyncio.gather(*(client.encode(crops[start:]) for start in range(20)))

    for start, embeddings in enumerate(run(triton.grpc_url, TINY, many)):
        np.testing.assert_allclose(embeddings, expected[start:], atol=1e-6)


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
