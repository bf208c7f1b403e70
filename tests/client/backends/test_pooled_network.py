"""A network that is cut, swallows everything, or is slow, between the client and real servers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_server import LocalTriton
from support.proxy import Proxy
from support.siblings import NAME, QUICK, in_the_middle, write_siblings

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


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_a_server_that_dies_behind_a_name_loses_nothing_and_the_others_go_on(
    tmp_path: Path, crops: Crops, truth: Embeddings
) -> None:
    """The name localhost stands for two servers, as a headless service of Kubernetes does."""
    repository = write_siblings(tmp_path, max_batch_size=4, work=1)
    with LocalTriton(repository, stop_timeout_s=1) as one:
        port = int(one.grpc_url.rpartition(":")[2])
        with (
            LocalTriton(repository, host="::1", grpc_port=port, stop_timeout_s=1) as other,
            TritonBackend(f"dns:///localhost:{port}", NAME, intervals=QUICK) as embedder,
        ):
            embedder.ensure_ready()
            twice = np.concatenate([crops, crops])
            embeddings, _ = in_the_middle(embedder, twice, signal.SIGKILL, other)
            np.testing.assert_allclose(embeddings, np.concatenate([truth, truth]), atol=1e-6)
            np.testing.assert_allclose(embedder.encode(crops), truth, atol=1e-6)
            assert embedder.diagnostics().counters["errors"] == {}
