"""A server, or a proxy before it, that takes no large requests."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingClient, EmbeddingClient
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_BYTES, Crops, Embeddings
from arcface_client.errors import InputError, RequestTooLargeError
from arcface_client.triton.limits import RequestLimits
from support.fake_triton import FakeTriton, served
from support.numbered import numbered, unit_vectors

NGINX_CROPS = 27
"""The limit of nginx where nothing is set is 1 MiB."""


def encode(url: str, crops: Crops) -> Embeddings:
    with EmbeddingClient(url, "fake") as client:
        return client.encode(crops)


def encode_async(url: str, crops: Crops) -> Embeddings:
    async def run() -> Embeddings:
        async with AsyncEmbeddingClient(url, "fake") as client:
            return await client.encode(crops)

    return asyncio.run(run())


def stream(url: str, crops: Crops) -> Embeddings:
    with EmbeddingClient(url, "fake") as client:
        return np.concatenate(list(client.stream(iter(crops))))


@pytest.mark.parametrize("call", [encode, encode_async, stream])
@pytest.mark.parametrize("count", [32, 100], ids=["one request", "several"])
def test_requests_that_are_refused_for_their_size_are_split(
    call: Callable[[str, Crops], Embeddings], count: int
) -> None:
    fake = FakeTriton(value=None, max_batch_size=32, most_crops=NGINX_CROPS)
    with served(fake) as url:
        np.testing.assert_array_equal(call(url, numbered(count)), unit_vectors(count))
    assert 1 <= fake.refused <= (count + 31) // 32


def test_the_size_that_passes_is_remembered() -> None:
    fake = FakeTriton(value=None, max_batch_size=32, most_crops=5)
    with served(fake) as url, EmbeddingClient(url, "fake") as client:
        client.encode(numbered(100))
        before = fake.refused
        client.encode(numbered(100))
    assert fake.refused == before > 0


def test_a_size_that_is_set_is_not_exceeded() -> None:
    fake = FakeTriton(value=None, max_batch_size=32, most_crops=NGINX_CROPS)
    with served(fake) as url, EmbeddingClient(url, "fake", max_request_mb=1) as client:
        np.testing.assert_array_equal(client.encode(numbered(100)), unit_vectors(100))
    assert fake.refused == 0


def test_a_proxys_413_is_told_as_what_it_is() -> None:
    """tests/deploy has the real nginx, where that is installed."""
    settings, status_413 = b"\0\0\0\4\0\0\0\0\0", b"\0\0\5\1\5\0\0\0\1\x08\x03413"

    def refuse() -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb") as source:
            client.sendall(settings)
            source.read(24)  # HTTP/2's preface
            while (head := source.read(9))[3] != 1:  # up to the headers of the request
                source.read(int.from_bytes(head[:3], "big"))
            client.sendall(status_413)
            source.read()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = threading.Thread(target=refuse)
        proxy.start()
        with (
            EmbeddingClient(f"127.0.0.1:{listener.getsockname()[1]}", "fake") as client,
            pytest.raises(RequestTooLargeError, match=r"takes no request of this size .*413"),
        ):
            client.ensure_ready()
        proxy.join()


def test_a_pool_splits_requests_and_does_not_blame_the_server() -> None:
    fake = FakeTriton(value=None, model="fake_onnx")
    with served(fake, largest_bytes=10 * CROP_BYTES) as url, TritonBackend(url, "fake") as embedder:
        for _ in range(2):
            embeddings, report = embedder.encode(numbered(60), return_source=True)
            np.testing.assert_array_equal(embeddings, unit_vectors(60))
            assert not report.fell_back
        assert sorted(fake.counts[-9:]) == [4, *[7] * 8]


def test_requests_are_no_smaller_than_they_have_to_be() -> None:
    fake = FakeTriton(value=None)
    with (
        served(fake, largest_bytes=40 * CROP_BYTES) as url,
        EmbeddingClient(url, "fake", max_in_flight=1) as client,
    ):
        client.encode(numbered(100))
        fake.counts.clear()
        client.encode(numbered(100))
    assert fake.counts == [32, 32, 32, 4]


def test_a_single_crop_that_is_too_large_is_an_error_that_says_so(crops: Crops) -> None:
    with (
        served(FakeTriton(), largest_bytes=CROP_BYTES // 2) as url,
        EmbeddingClient(url, "fake") as client,
        pytest.raises(RequestTooLargeError, match="takes no request of this size"),
    ):
        client.encode(crops[:40])
    with pytest.raises(InputError, match=r"max_request_mb is 0\.01; expected at least 0\.04"):
        RequestLimits(max_request_mb=0.01)
