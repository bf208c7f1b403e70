"""A network that is cut, swallows everything, or is slow, between the client and real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.local import LocalModel, LocalOrigin
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import CROP_SHAPE, Crops, Embeddings
from arcface_client.errors import DeadlineExceededError, DeploymentError
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.observability.diagnostics import Served
from arcface_server import LocalTriton
from support.processes import wait_until
from support.proxy import Proxy
from support.siblings import LOCAL, NAME, PLAN, QUICK, local_tiny, tiny_embeddings, write_siblings

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


@pytest.fixture(scope="module")
def truth(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), crops)


def in_the_middle(
    embedder: TritonBackend,
    crops: Crops,
    way: Proxy,
    fault: Callable[[], AbstractContextManager[None]],
    lasts_s: float | None = None,
) -> tuple[Embeddings, Served]:
    """Embed crops, and let a fault begin once some of them are on their way; it ends with the call."""
    before = way.carried_bytes
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        call = pool.submit(embedder.encode, crops, timeout_s=20, return_source=True)
        wait_until(lambda: way.carried_bytes > before + 10 * CROP_BYTES)
        stack.enter_context(fault())
        if lasts_s is not None:
            time.sleep(lasts_s)
            stack.close()
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


def test_a_single_way_that_is_cut_for_a_moment_loses_nothing(
    ways: Ways, crops: Crops, truth: Embeddings
) -> None:
    with TritonBackend(ways[0].url, NAME) as embedder:
        embedder.ensure_ready()
        embeddings, served = in_the_middle(embedder, crops, ways[0], ways[0].cut, lasts_s=0.3)
        np.testing.assert_allclose(embeddings, truth, atol=1e-6)
        assert sum(source.crops for source in served.sources) == len(crops)
        assert sum(embedder.diagnostics().counters["fallbacks"].values()) >= 1


def test_a_call_waits_for_a_single_way_that_swallows_everything_until_its_deadline(
    ways: Ways, crops: Crops
) -> None:
    with TritonBackend(ways[0].url, NAME, intervals=QUICK) as embedder:
        embedder.ensure_ready()
        started = time.monotonic()
        with (
            ways[0].black_hole(),
            pytest.raises(DeadlineExceededError, match=r"the whole call, 1 s, is over; 0 of 100 crops"),
        ):
            embedder.encode(crops, timeout_s=1)
        assert time.monotonic() - started < 8, "of 60 that a request has"
        assert embedder.encode(crops[:3]).shape == (3, 512)


def test_a_way_that_swallows_everything_leaves_the_rest_to_this_process(
    ways: Ways, crops: Crops, truth: Embeddings, tmp_path: Path
) -> None:
    with TritonBackend(
        ways[0].url,
        NAME,
        intervals=QUICK,
        local=[local_tiny(tmp_path)],
    ) as embedder:
        embedder.ensure_ready()
        embeddings, served = in_the_middle(embedder, crops, ways[0], ways[0].black_hole)
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    assert served.sources[-1].where == "this process"
    assert sum(source.crops for source in served.sources) == len(crops)


def test_a_network_that_is_slow_is_no_reason_to_leave_a_server(
    embedder: TritonBackend, ways: Ways, crops: Crops, truth: Embeddings
) -> None:
    some = crops[:40]
    # Four crops, a request's, need a fifth of a second; eight requests more than the server has to say that
    # it is alive.
    with ways[0].slow(bytes_per_s=20 * CROP_BYTES):
        started = time.monotonic()
        embeddings, served = embedder.encode(some, return_source=True)
        assert time.monotonic() - started > 1.5
    np.testing.assert_allclose(embeddings, truth[:40], atol=1e-6)
    assert [source.where for source in served.sources] == [ways[0].url]
    assert not served.fell_back


def test_an_upload_longer_than_a_server_has_to_say_that_it_is_alive_is_no_reason_to_leave_it(
    embedder: TritonBackend, ways: Ways, crops: Crops, truth: Embeddings
) -> None:
    # Four crops, a request's, need more than the half second in which the server has to say so.
    with ways[0].slow(bytes_per_s=4 * CROP_BYTES):
        embeddings, served = embedder.encode(crops[:8], return_source=True)
    np.testing.assert_allclose(embeddings, truth[:8], atol=1e-6)
    assert [source.where for source in served.sources] == [ways[0].url]
    assert not served.fell_back


def test_a_local_model_that_cannot_be_loaded_is_no_reason_to_leave_the_only_server(
    ways: Ways, crops: Crops, truth: Embeddings
) -> None:
    tries: list[EmbeddingSpace | None] = []

    def load(space: EmbeddingSpace | None) -> LocalModel:
        tries.append(space)
        raise DeploymentError("there is no model repository here")

    local = [LocalOrigin(LOCAL, load)]
    with TritonBackend(ways[0].url, NAME, intervals=QUICK, local=local) as embedder:
        embedder.ensure_ready()
        with ThreadPoolExecutor(1) as pool:
            with ways[0].black_hole():
                call = pool.submit(embedder.encode, crops, timeout_s=20, return_source=True)
                wait_until(lambda: bool(tries))
            embeddings, served = call.result()
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    assert [source.where for source in served.sources] == [ways[0].url]
    assert not served.fell_back
