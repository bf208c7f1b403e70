"""A connection that several clients share, and that may be dropped under their calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from arcface_client import AsyncEmbeddingClient, EmbeddingClient
from arcface_client.contract import Crops
from arcface_client.errors import (
    ClientClosedError,
    InputError,
    ServerBusyError,
    ServerError,
    ServerUnavailableError,
)
from arcface_client.triton.aio_channel import AsyncConnection
from arcface_client.triton.channel import Connection, _TritonClient
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.embed_request import EmbedRequest
from arcface_client.triton.tls import Tls
from support.fake_triton import FakeTriton, served
from support.processes import wait_until


@contextmanager
def waiting_call(crops: Crops) -> Iterator[tuple[FakeTriton, Connection, EmbeddingClient, Any]]:
    """A call that is under way at a server which does not answer."""
    fake = FakeTriton(max_batch_size=2)
    fake.answers.clear()
    with served(fake) as url, ThreadPoolExecutor(1) as pool:
        connection = Connection(url, retries=False)
        client = EmbeddingClient(url, "fake", connection=connection)
        call = pool.submit(client.encode, crops)
        wait_until(lambda: fake.requests > 0)
        try:
            yield fake, connection, client, call
        finally:
            fake.answers.set()
            connection.close()


@pytest.mark.parametrize("count", [1, 20], ids=["one request", "several requests"])
def test_dropping_fails_the_calls_under_way_at_once_and_the_next_connects_anew(
    crops: Crops, count: int
) -> None:
    with waiting_call(crops[:count]) as (fake, connection, client, call):
        started = time.monotonic()
        connection.drop("it hangs")
        with pytest.raises(ServerUnavailableError, match="was dropped: it hangs"):
            call.result(timeout=10)
        assert time.monotonic() - started < 5, "of 20 that the server hangs"
        fake.answers.set()
        client.ensure_ready()


def test_closing_ends_the_calls_of_all_its_clients(crops: Crops) -> None:
    with waiting_call(crops[:20]) as (_, connection, client, call):
        connection.close()
        with pytest.raises(ClientClosedError):
            call.result(timeout=10)
        with pytest.raises(ClientClosedError):
            client.ensure_ready()
        connection.drop("too late")
        with pytest.raises(ClientClosedError):
            client.ensure_ready()


def test_a_client_does_not_close_a_connection_that_it_shares(crops: Crops) -> None:
    with served(FakeTriton()) as url:
        connection = Connection(url)
        with EmbeddingClient(url, "fake", connection=connection) as client:
            client.encode(crops[:1])
        assert EmbeddingClient(url, "fake", connection=connection).encode(crops[:1]).shape == (1, 512)
        connection.close()


@pytest.mark.parametrize(
    ("client", "connection"), [(EmbeddingClient, Connection), (AsyncEmbeddingClient, AsyncConnection)]
)
def test_a_connection_that_says_something_else_than_the_client_is_refused(
    client: Any, connection: Any
) -> None:
    async def use() -> None:
        ours = Tls()
        with pytest.raises(InputError, match="is for a:8001, but its connection goes to b:8002"):
            client("a:8001", connection=connection("b:8002"))
        with pytest.raises(InputError, match="tls is given beside a connection to a:8001"):
            client("a:8001", tls=ours, connection=connection("a:8001"))
        client("a:8001", connection=connection("a:8001", ours))
        client("a:8001", tls=ours, connection=connection("a:8001", ours))

    asyncio.run(use())


def test_without_retries_a_refusal_is_said_at_once(crops: Crops) -> None:
    fake = FakeTriton(failures=(grpc.StatusCode.UNAVAILABLE,))
    with served(fake) as url:
        connection = Connection(url, retries=False)
        with pytest.raises(ServerBusyError):
            EmbeddingClient(url, "fake", connection=connection).encode(crops[:1])
        connection.close()
    assert fake.requests == 1


def test_a_refused_request_does_not_lose_the_others_that_are_under_way(crops: Crops) -> None:
    fake = FakeTriton(failures=(grpc.StatusCode.UNAVAILABLE,), max_batch_size=2)
    job = EmbedRequest(crops[:10], Deadline(None))
    with served(fake) as url:
        connection = Connection(url, retries=False)
        client = EmbeddingClient(url, "fake", connection=connection)
        with pytest.raises(ServerBusyError):
            client.work(job)
        assert job.missing == 2
        client.work(job)
        connection.close()
    assert job.missing == 0
    assert fake.requests == 6
    np.testing.assert_array_equal(job.embeddings, np.full((10, 512), 512**-0.5, np.float32))


def test_an_error_keeps_what_was_answered_before_it(crops: Crops) -> None:
    fake = FakeTriton(failures=(None, None, grpc.StatusCode.INTERNAL), max_batch_size=2)
    job = EmbedRequest(crops[:10], Deadline(None))
    with (
        served(fake) as url,
        EmbeddingClient(url, "fake", max_in_flight=1) as client,
        pytest.raises(ServerError),
    ):
        client.work(job)
    assert job.missing == 6


def test_only_what_went_by_the_client_that_was_dropped_counts_as_dropped() -> None:
    connection = Connection("localhost:8001")
    before = connection.triton
    assert connection.why_dropped(before) is None
    connection.drop("it hung")
    assert connection.why_dropped(before) == "it hung"
    assert connection.why_dropped(connection.triton) is None
    connection.close()


def test_a_client_whose_beginning_was_interrupted_ends_without_a_word() -> None:
    interrupted = _TritonClient.__new__(_TritonClient)

    interrupted.close()  # as its __del__ does, whose errors Python prints
