"""A server that is away, fails, hangs or is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest

from arcface_client import EmbeddingClient
from arcface_client.contract import CROP_SHAPE, Crops
from arcface_client.errors import DeadlineExceededError, ServerBusyError, ServerError, ServerUnavailableError
from arcface_client.triton.channel import Connection
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import open_files, wait_until
from support.proxy import Proxy
from support.siblings import answered
from support.tiny import write_tiny_repository

pytestmark = pytest.mark.faults

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("count", [1, 8, 64])
def test_unavailable_is_retried_whatever_the_size_of_the_request(crops: Crops, count: int) -> None:
    fake = FakeTriton(failures=(UNAVAILABLE, UNAVAILABLE))
    with served(fake) as url, EmbeddingClient(url, "fake") as client:
        assert client.encode(crops[:count]).shape == (count, 512)
    assert fake.requests == 3


def test_a_server_that_stays_full_is_busy(crops: Crops) -> None:
    with (
        served(FakeTriton(failures=(UNAVAILABLE,) * 20)) as url,
        EmbeddingClient(url, "fake") as client,
        pytest.raises(ServerBusyError, match=r"refused a request for fake at .*: told to fail"),
    ):
        client.encode(crops[:1])


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN]
)
def test_other_failures_are_server_errors_and_not_retried(crops: Crops, status: grpc.StatusCode) -> None:
    fake = FakeTriton(failures=(status,))
    with (
        served(fake) as url,
        EmbeddingClient(url, "fake") as client,
        pytest.raises(ServerError, match=f"told to fail .*{status.name}"),
    ):
        client.encode(crops[:1])
    assert fake.requests == 1


def test_an_address_without_a_server_is_named_at_once(crops: Crops) -> None:
    started = time.monotonic()
    with (
        EmbeddingClient("127.0.0.1:9", "tiny_onnx") as client,
        pytest.raises(ServerUnavailableError, match=r"No Triton server is ready at 127\.0\.0\.1:9"),
    ):
        client.encode(crops[:1])
    assert time.monotonic() - started < 5


def test_a_port_that_never_answers_fails_within_seconds() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        EmbeddingClient(f"127.0.0.1:{silent.getsockname()[1]}") as client,
    ):
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="before receiving SETTINGS frame"):
            client.status()
    assert time.monotonic() - started < 15  # gRPC itself waits 20 s and more


def test_a_server_killed_in_the_middle_is_reported_and_found_again(tmp_path: Path, crops: Crops) -> None:
    write_tiny_repository(tmp_path, max_batch_size=2, work=10)
    with LocalTriton(tmp_path) as server:
        port = int(server.grpc_url.rpartition(":")[2])
        with EmbeddingClient(server.grpc_url, "tiny_onnx") as client:
            before = client.encode(crops[:4])
            first = answered(server)
            with ThreadPoolExecutor(1) as pool:
                call = pool.submit(client.encode, crops)
                wait_until(lambda: answered(server) > first)
                os.kill(server.pid, signal.SIGKILL)
                with pytest.raises(ServerUnavailableError):
                    call.result(timeout=30)
            with LocalTriton(tmp_path, grpc_port=port):
                np.testing.assert_array_equal(client.encode(crops[:4]), before)


def test_a_server_that_hangs_costs_no_more_than_the_deadline(tmp_path: Path, crops: Crops) -> None:
    write_tiny_repository(tmp_path)
    with LocalTriton(tmp_path) as server, EmbeddingClient(server.grpc_url, "tiny_onnx") as client:
        client.encode(crops)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                client.encode(crops, timeout_s=1)
            assert time.monotonic() - started < 6, "of 60 that a request has"
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert client.encode(crops).shape == (100, 512)


def test_a_network_that_ends_while_requests_are_stuck_in_it_costs_seconds_and_leaves_nothing_open() -> None:
    """The other side ends the connection and reads no more: TCP alone would wait for ever."""
    crops = np.zeros((64, *CROP_SHAPE), np.uint8)

    def sockets() -> int:
        return sum(name.startswith("socket:") for name in open_files(os.getpid()))

    with served(FakeTriton()) as url, Proxy(url) as proxy:
        before = sockets()
        connection = Connection(proxy.url, retries=False)
        client = EmbeddingClient(model="fake", connection=connection)
        with closing(connection), ThreadPoolExecutor(4) as pool:
            client.encode(crops[:1])
            with proxy.black_hole():
                calls = [pool.submit(client.encode, crops, timeout_s=2) for _ in range(4)]
                time.sleep(0.5)  # they have filled the socket
                started = time.monotonic()
                with proxy.cut():
                    time.sleep(0.2)
                errors = [call.exception(timeout=20) for call in calls]
                assert time.monotonic() - started < 10
        assert {type(error) for error in errors} <= {DeadlineExceededError, ServerUnavailableError}
        wait_until(lambda: sockets() <= before, timeout_s=10)
