"""A network that is cut, swallows everything, or is slow, between the client and real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.observability.diagnostics import Served
from arcface_server import LocalTriton
from support.processes import wait_until
from support.proxy import Proxy
from support.siblings import NAME, PLAN, QUICK, write_siblings

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


def in_the_middle(
    embedder: TritonBackend,
    crops: Crops,
    way: Proxy,
    fault: Callable[[], AbstractContextManager[None]],
) -> tuple[Embeddings, Served]:
    """Embed crops, and let a fault begin once some of them are on their way; it ends with the call."""
    before = way.carried_bytes
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        call = pool.submit(embedder.encode, crops, timeout_s=20, return_source=True)
        wait_until(lambda: way.carried_bytes > before + 10 * CROP_BYTES)
        stack.enter_context(fault())
        return call.result()


def serves(embedder: TritonBackend, way: Proxy) -> bool:
    states = {one.candidate: one.state for one in embedder.diagnostics().candidates}
    return states[f"{PLAN}:1 at {way.url}"] == "serving"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Proxy.cut, "No Triton server is ready"),
        (Proxy.black_hole, "did not say within 0.5 s that it is alive"),
    ],
    ids=["cut", "black hole"],
)
def test_a_network_that_fails_in_the_middle_leaves_the_rest_to_the_next_server_and_is_used_again(
    embedder: TritonBackend,
    ways: Ways,
    crops: Crops,
    truth: Embeddings,
    fault: Callable[[Proxy], AbstractContextManager[None]],
    reason: str,
) -> None:
    started = time.monotonic()
    embeddings, served = in_the_middle(embedder, crops, ways[0], lambda: fault(ways[0]))
    assert time.monotonic() - started < 10
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    assert [source.where for source in served.sources][-1] == ways[1].url
    assert sum(source.crops for source in served.sources) == len(crops)
    assert served.refusals[0].candidate == f"{PLAN}:1 at {ways[0].url}"
    assert reason in served.refusals[0].reason

    wait_until(lambda: serves(embedder, ways[0]))
    _, served = embedder.encode(crops[:3], return_source=True)
    assert [source.where for source in served.sources] == [ways[0].url]


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
