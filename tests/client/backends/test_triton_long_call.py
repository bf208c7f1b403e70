"""A call of many crops, in the middle of which a server is killed and started again."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import NoCandidateError
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import NAME, PLAN, QUICK, answered, tiny_embeddings, write_siblings

pytestmark = pytest.mark.faults

COUNT = 5000


@pytest.fixture(scope="module")
def many() -> Crops:
    """Crops of which no two have the same embedding."""
    coarse = np.random.default_rng(11).integers(0, 256, (COUNT, 7, 7, 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def truth(many: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), many)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siblings(tmp_path_factory.mktemp("siblings"))


@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_killed_and_started_again_in_the_middle_costs_no_crop(
    repository: Path, many: Crops, truth: Embeddings, servers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        victim = ExitStack()
        first = victim.enter_context(LocalTriton(repository, stop_timeout_s=1))
        others = [stack.enter_context(LocalTriton(repository, stop_timeout_s=1)) for _ in range(servers - 1)]
        urls = [server.grpc_url for server in (first, *others)]
        embedder = stack.enter_context(TritonBackend(urls, NAME, intervals=QUICK))
        embedder.ensure_ready()
        call = pool.submit(embedder.encode, many, timeout_s=60, return_source=True)
        with victim:
            wait_until(lambda: answered(first) > COUNT // 32 // 5)
            os.kill(first.pid, signal.SIGKILL)
        port = int(urls[0].rpartition(":")[2])
        stack.enter_context(LocalTriton(repository, grpc_port=port, stop_timeout_s=1))
        embeddings, served = call.result()
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    assert sum(source.crops for source in served.sources) == COUNT
    assert [source.where for source in served.sources] == urls
    assert f"not {PLAN}:1 at {urls[0]}" in caplog.text


def test_a_server_that_comes_back_with_another_model_in_the_middle_of_a_call_does_not_go_on_with_it(
    repository: Path, many: Crops, tmp_path: Path
) -> None:
    write_siblings(tmp_path, skew=0.1)
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        with LocalTriton(repository, stop_timeout_s=1) as first:
            port = int(first.grpc_url.rpartition(":")[2])
            embedder = stack.enter_context(TritonBackend(first.grpc_url, NAME, intervals=QUICK))
            embedder.ensure_ready()
            call = pool.submit(embedder.encode, many)
            wait_until(lambda: answered(first) > COUNT // 32 // 5)
            os.kill(first.pid, signal.SIGKILL)
        stack.enter_context(LocalTriton(tmp_path, grpc_port=port, stop_timeout_s=1))
        with pytest.raises(NoCandidateError, match=r"tiny_trt:1 .* another source model, .* drift 0\.00"):
            call.result()
