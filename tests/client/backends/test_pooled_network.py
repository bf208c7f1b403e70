"""A network that is cut, swallows everything, or is slow, between the client and real servers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_server import LocalTriton
from support.proxy import Proxy
from support.siblings import NAME, QUICK, write_siblings

pytestmark = pytest.mark.faults

Ways = tuple[Proxy, Proxy]
CROP_BYTES = int(np.prod(CROP_SHAPE))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    repository = write_siblings(tmp_path_factory.mktemp("siblings"), max_batch_size=4, work=1)
    with LocalTriton(repository, stop_timeout_s=1) as triton:
        yield triton


@pytest.fixture
def ways(server: LocalTriton) -> Iterator[Ways]:
    """Two ways to one server, which the client takes for two servers."""
    with Proxy(server.grpc_url) as first, Proxy(server.grpc_url) as second:
        yield first, second


@pytest.fixture
def embedder(ways: Ways) -> Iterator[TritonBackend]:
    with TritonBackend([way.url for way in ways], NAME, intervals=QUICK) as backend:
        backend.ensure_ready()
        yield backend


@pytest.mark.parametrize(("crops_per_s", "count"), [(20, 40), (4, 8)], ids=["many requests", "one upload"])
def test_a_slow_network_does_not_start_fallback(
    embedder: TritonBackend, ways: Ways, crops: Crops, truth: Embeddings, crops_per_s: int, count: int
) -> None:
    """All requests, or a single one of four crops, need more time than the server has to say it is alive."""
    with ways[0].slow(bytes_per_s=crops_per_s * CROP_BYTES):
        embeddings, served = embedder.encode(crops[:count], return_source=True)
    np.testing.assert_allclose(embeddings, truth[:count], atol=1e-6)
    assert [source.where for source in served.sources] == [ways[0].url]
    assert not served.fell_back
