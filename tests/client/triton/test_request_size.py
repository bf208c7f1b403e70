"""A server, or a proxy before it, that takes no large requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from arcface_client import AsyncEmbeddingClient, EmbeddingClient
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_BYTES, Crops, Embeddings
from arcface_client.errors import InputError, RequestTooLargeError
from arcface_client.triton.limits import RequestLimits
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.numbered import numbered, unit_vectors
from support.size_proxy import size_limit

NGINX_BYTES = 2**20
"""The limit of nginx where nothing is set: 27 crops."""


def encode(url: str, crops: Crops) -> Embeddings:
    with EmbeddingClient(url, "tiny_onnx") as client:
        return client.encode(crops)


def encode_async(url: str, crops: Crops) -> Embeddings:
    async def run() -> Embeddings:
        async with AsyncEmbeddingClient(url, "tiny_onnx") as client:
            return await client.encode(crops)

    return asyncio.run(run())


def stream(url: str, crops: Crops) -> Embeddings:
    with EmbeddingClient(url, "tiny_onnx") as client:
        return np.concatenate(list(client.stream(iter(crops))))


@pytest.mark.parametrize("call", [encode, encode_async, stream])
@pytest.mark.parametrize("count", [32, 100], ids=["one request", "several"])
def test_requests_that_a_proxy_refuses_with_413_are_split(
    triton: LocalTriton,
    crops: Crops,
    expected: Embeddings,
    call: Callable[[str, Crops], Embeddings],
    count: int,
) -> None:
    with size_limit(triton.grpc_url, NGINX_BYTES) as proxy:
        np.testing.assert_allclose(call(proxy.url, crops[:count]), expected[:count], atol=1e-6)
        assert 1 <= proxy.refused <= (count + 31) // 32


def test_the_size_that_passes_is_remembered(triton: LocalTriton, crops: Crops) -> None:
    with size_limit(triton.grpc_url, 5 * CROP_BYTES) as proxy:
        with EmbeddingClient(proxy.url, "tiny_onnx") as client:
            client.encode(crops)
            before = proxy.refused
            client.encode(crops)
        assert proxy.refused == before


def test_a_size_that_is_set_is_not_exceeded(triton: LocalTriton, crops: Crops, expected: Embeddings) -> None:
    with (
        size_limit(triton.grpc_url, NGINX_BYTES) as proxy,
        EmbeddingClient(proxy.url, "tiny_onnx", max_request_mb=1) as client,
    ):
        np.testing.assert_allclose(client.encode(crops), expected, atol=1e-6)
        assert proxy.refused == 0


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
