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
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ClientClosedError, CropError, DeadlineExceededError, InputError
from arcface_client.observability.diagnostics import Diagnostics, Served
from arcface_client.triton.embed_request import EmbedRequest
from arcface_server import LocalTriton
from support.processes import until
from support.siblings import NAME, PLAN, tiny_embeddings

Pair = tuple[LocalTriton, LocalTriton]
Call = Callable[[AsyncEmbeddingBackend], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def truth(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), crops)


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


def test_the_loop_goes_on_meanwhile(pair: Pair, crops: Crops) -> None:
    async def call(embedder: AsyncEmbeddingBackend) -> int:
        turns = 0
        encoding = asyncio.create_task(embedder.encode(crops[:40]))
        while not encoding.done():
            await asyncio.sleep(0.001)
            turns += 1
        await encoding
        return turns

    assert run(pair[0], call) > 20


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


class Held(EmbeddingBackend):
    """Embeds one crop when it may, and more never."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.is_done = False

    def ensure_ready(self) -> None:
        pass

    def diagnostics(self) -> Diagnostics:
        return Diagnostics(backend="held")

    def close(self) -> None:
        pass

    def run(self, request: EmbedRequest) -> Served:
        while len(request.crops) > 1 or not self.goes_on.wait(0.001):
            request.deadline.remaining_s()
        self.is_done = True
        return Served(())


def test_a_call_can_be_cancelled_however_soon_after_its_turn_has_come(crops: Crops) -> None:
    async def cancel_after(turns_of_the_loop: int) -> None:
        held = Held()
        async with AsyncEmbeddingBackend(held, max_calls=1) as embedder:
            first = asyncio.create_task(embedder.encode(crops[:1]))
            waiting = asyncio.create_task(embedder.encode(crops[:2], timeout_s=5))
            await asyncio.sleep(0)
            held.goes_on.set()
            while not held.is_done:
                await asyncio.sleep(0)
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await first

    for turns in range(50):
        asyncio.run(cancel_after(turns))


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


def test_errors_of_the_backend_are_raised(pair: Pair, crops: Crops) -> None:
    async def call(embedder: AsyncEmbeddingBackend) -> None:
        with pytest.raises(CropError):
            await embedder.encode(crops[0])
        with pytest.raises(InputError, match="timeout_s is 0"):
            await embedder.encode(crops, timeout_s=0)

    run(pair[0], call)


def test_max_calls_must_be_at_least_one() -> None:
    with (
        TritonBackend("localhost:8001", NAME) as embedder,
        pytest.raises(InputError, match="max_calls is 0"),
    ):
        AsyncEmbeddingBackend(embedder, max_calls=0)
