"""AsyncEmbeddingBackend: the loop goes on, cancelling ends a call, and closing ends them all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ClientClosedError, DeadlineExceededError
from arcface_server import LocalTriton
from support.processes import until
from support.siblings import NAME, PLAN

Pair = tuple[LocalTriton, LocalTriton]
Call = Callable[[AsyncEmbeddingBackend], Coroutine[Any, Any, Any]]


def run(server: LocalTriton, call: Call, **limits: Any) -> Any:
    async def main() -> Any:
        async with AsyncEmbeddingBackend(TritonBackend(server.grpc_url, NAME), **limits) as embedder:
            await embedder.ensure_ready()
            return await call(embedder)

    return asyncio.run(main())


def errors(embedder: AsyncEmbeddingBackend) -> dict[str, int]:
    counted: dict[str, int] = embedder.diagnostics().counters["errors"]
    return counted


def under_way() -> int:
    """How many threads have begun with a call; they begin when there is one for them."""
    return sum(thread.name.startswith("arcface-asyncio") for thread in threading.enumerate())


def test_calls_side_by_side_get_their_own_embeddings(pair: Pair, crops: Crops, truth: Embeddings) -> None:
    async def call(embedder: AsyncEmbeddingBackend) -> None:
        parts = [slice(start, start + 7) for start in range(0, 28, 7)]
        answers = await asyncio.gather(*(embedder.encode(crops[part]) for part in parts))
        for part, answer in zip(parts, answers, strict=True):
            np.testing.assert_allclose(answer, truth[part], atol=1e-6)
        _, served = await embedder.encode(crops[:1], return_source=True)
        assert served.sources[0].model == PLAN

    run(pair[0], call, max_calls=2)


def test_a_call_that_is_cancelled_ends_at_once_and_sends_no_more(pair: Pair, crops: Crops) -> None:
    many = np.concatenate([crops] * 20)  # some twenty seconds

    async def call(embedder: AsyncEmbeddingBackend) -> None:
        encoding = asyncio.create_task(embedder.encode(many))
        await until(lambda: under_way() == 1)
        started = time.monotonic()
        encoding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await encoding
        assert time.monotonic() - started < 5
        await until(lambda: errors(embedder) == {"CallCancelledError": 1})
        # Its thread is free for another one, and its candidate is not to blame.
        await embedder.encode(crops[:1], timeout_s=8.0)
        assert embedder.diagnostics().candidates[0].state == "serving"

    run(pair[0], call, max_calls=1)


def test_the_deadline_counts_the_wait_for_a_turn(pair: Pair, crops: Crops) -> None:
    async def call(embedder: AsyncEmbeddingBackend) -> None:
        first = asyncio.create_task(embedder.encode(np.concatenate([crops] * 20)))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError, match=r"0\.2 s, was over before it had its turn"):
            await embedder.encode(crops[:1], timeout_s=0.2)
        assert not first.done()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    run(pair[0], call, max_calls=1)


def test_closing_fails_calls_under_way_and_waiting(pair: Pair, crops: Crops) -> None:
    async def call(embedder: AsyncEmbeddingBackend) -> None:
        calls = [asyncio.create_task(embedder.encode(crops)) for _ in range(3)]
        await until(lambda: under_way() == 2)
        await embedder.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ClientClosedError)
        with pytest.raises(ClientClosedError):
            await embedder.encode(crops[:1])

    run(pair[0], call, max_calls=2)
