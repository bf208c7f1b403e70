"""A connection: its address, its certificates, clients that share it, and calls under which it is dropped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from arcface_client import Connection, EmbeddingClient, Tls
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops
from arcface_client.errors import (
    ClientClosedError,
    ConfigError,
    InputError,
    NoCandidateNowError,
    ServerBusyError,
    ServerUnavailableError,
)
from arcface_client.triton.embed_request import Deadline, EmbedRequest
from support.fake_triton import FakeTriton, served
from support.processes import wait_until


@contextmanager
def waiting_call(crops: Crops) -> Iterator[tuple[FakeTriton, Connection, EmbeddingClient, Any]]:
    """A call that is under way at a server which does not answer."""
    fake = FakeTriton(max_batch_size=2)
    fake.answers.clear()
    with served(fake) as url, ThreadPoolExecutor(1) as pool:
        connection = Connection(url, retries=False)
        client = EmbeddingClient(model="fake", connection=connection)
        call = pool.submit(client.encode, crops)
        wait_until(lambda: fake.requests > 0)
        try:
            yield fake, connection, client, call
        finally:
            fake.answers.set()
            connection.close()


@pytest.mark.parametrize("count", [1, 20], ids=["one request", "several requests"])
def test_dropping_fails_the_calls_under_way_at_once_and_the_next_call_connects_anew(
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
        connection.drop("too late")
        with pytest.raises(ClientClosedError):
            client.ensure_ready()


@pytest.mark.parametrize("beside", [{"url": "b:8002"}, {"tls": Tls()}], ids=["url", "tls"])
def test_an_address_beside_a_connection_is_refused(beside: Any) -> None:
    with pytest.raises(InputError, match="beside a connection to b:8002; give only the connection"):
        EmbeddingClient(**beside, connection=Connection("b:8002"))


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", ":8001", "localhost:http", None])
def test_a_url_that_is_not_host_and_port_is_refused(url: str | None) -> None:
    with pytest.raises(ConfigError, match="expected host:port of its gRPC service"):
        EmbeddingClient(url)


def test_a_file_that_is_not_a_certificate_is_refused_before_grpc_sees_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"root_certificates is .*missing\.pem, which cannot be read"):
        Tls(root_certificates=tmp_path / "missing.pem")
    text = tmp_path / "readme.md"
    text.write_text("# not a certificate")
    with pytest.raises(ConfigError, match=r"root_certificates is .*readme\.md, which is not a PEM file"):
        Tls(root_certificates=text)
    text.write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(ConfigError, match=r"needs both tls\.private_key and tls\.certificate_chain"):
        Tls(private_key=text)


def test_a_server_that_dies_while_another_one_answers_is_not_said_to_want_a_key() -> None:
    """Behind one name: the question for the models meets the one, that for its life the other."""

    class Dying(FakeTriton):
        def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)")

    with (
        served(Dying()) as url,
        TritonBackend(url, "fake") as embedder,
        pytest.raises(NoCandidateNowError, match=r"No Triton server is ready .*Socket closed"),
    ):
        embedder.ensure_ready()


def test_a_refused_request_does_not_lose_the_others_that_are_under_way(crops: Crops) -> None:
    fake = FakeTriton(failures=(grpc.StatusCode.UNAVAILABLE,), max_batch_size=2)
    request = EmbedRequest(crops[:10], Deadline(None))
    with served(fake) as url:
        connection = Connection(url, retries=False)
        client = EmbeddingClient(model="fake", connection=connection)
        with pytest.raises(ServerBusyError):
            client.embed_request(request)
        assert request.missing == 2
        client.embed_request(request)
        connection.close()
    assert request.missing == 0
    assert fake.requests == 6
    np.testing.assert_array_equal(request.embeddings, np.full((10, 512), 512**-0.5, np.float32))
