"""Servers that die and come back, with the same model or another one, while calls are under way."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tritonclient import grpc as tritonclient

from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeadlineExceededError, NoCandidateError
from arcface_client.failover.replica import Intervals
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import (
    EXPLICIT,
    LOCAL,
    NAME,
    ONNX,
    PLAN,
    QUICK,
    Pair,
    answered,
    in_the_middle,
    local_tiny,
    serving,
    stopped,
    tiny_embeddings,
    urls,
    write_siblings,
)
from support.tiny import tiny_serving_graph, write_tiny_repository

pytestmark = pytest.mark.faults


def test_killed_servers_leave_the_rest_to_the_next_and_then_to_this_process_and_are_used_again(
    tmp_path: Path, many: Crops, many_truth: Embeddings, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_repository(tmp_path / "repository", max_batch_size=2, work=1)
    with (
        LocalTriton(tmp_path / "repository") as first,
        LocalTriton(tmp_path / "repository") as second,
        TritonBackend(
            [first.grpc_url, second.grpc_url],
            NAME,
            local=[local_tiny(tmp_path)],
            intervals=QUICK,
        ) as embedder,
    ):
        embedder.ensure_ready()

        embeddings, served = in_the_middle(embedder, many, signal.SIGKILL, first)
        np.testing.assert_allclose(embeddings, many_truth, atol=1e-6)
        assert [source.where for source in served.sources] == [first.grpc_url, second.grpc_url]
        assert sum(source.crops for source in served.sources) == len(many)
        assert served.refusals[0].candidate == f"tiny_onnx:1 at {first.grpc_url}"
        assert (
            f"{ONNX}:1 at {second.grpc_url} serves now instead of {ONNX}:1 at {first.grpc_url}" in caplog.text
        )

        embeddings, served = in_the_middle(embedder, many, signal.SIGKILL, second)
        np.testing.assert_allclose(embeddings, many_truth, atol=1e-6)
        assert [source.where for source in served.sources] == [second.grpc_url, "this process"]
        assert sum(source.crops for source in served.sources) == len(many)
        assert "No candidate serves now" in caplog.text
        assert embedder.diagnostics().backend == "onnxruntime"
        assert serving(embedder) == LOCAL

        port = int(first.grpc_url.rpartition(":")[2])
        with LocalTriton(tmp_path / "repository", grpc_port=port):
            wait_until(lambda: serving(embedder) == f"{ONNX}:1 at {first.grpc_url}")
            embeddings, served = embedder.encode(many[:9], return_source=True)
        np.testing.assert_allclose(embeddings, many_truth[:9], atol=1e-6)
        assert [source.where for source in served.sources] == [first.grpc_url]


def test_an_embedder_that_was_not_closed_ends_its_threads(pair: Pair, many: Crops) -> None:
    before = set(threading.enumerate())
    embedder = TritonBackend(pair[0].grpc_url, NAME, intervals=QUICK)
    embedder.encode(many[:32])

    del embedder
    gc.collect()

    wait_until(
        lambda: not any(thread.name.startswith("arcface") for thread in set(threading.enumerate()) - before)
    )


def test_one_deadline_holds_across_all_tries(pair: Pair, many: Crops) -> None:
    with TritonBackend(urls(pair), NAME, intervals=QUICK) as embedder:
        embedder.ensure_ready()
        with stopped(pair[0]), stopped(pair[1]):
            started = time.monotonic()
            with pytest.raises(
                DeadlineExceededError, match=r"the whole call, 1\.5 s, is over; 0 of 200 crops"
            ):
                embedder.encode(many, timeout_s=1.5)
            assert time.monotonic() - started < 8, "of 60 that a request has"
        wait_until(lambda: serving(embedder) is not None)
        assert embedder.encode(many[:3]).shape == (3, 512)


def test_a_local_model_that_settled_the_space_keeps_another_source_model_out(
    pair: Pair, many: Crops, tmp_path: Path
) -> None:
    with TritonBackend(
        pair[0].grpc_url,
        NAME,
        intervals=QUICK,
        local=[local_tiny(tmp_path, skew=0.2)],
    ) as embedder:
        with stopped(pair[0]):
            embeddings = embedder.encode(many[:3])
        wait_until(lambda: len(embedder.diagnostics().candidates) == 3)
        again, served = embedder.encode(many[:3], return_source=True)
    np.testing.assert_allclose(again, embeddings, atol=1e-6)
    assert [source.where for source in served.sources] == ["this process"]


def test_a_model_unloaded_under_load_is_replaced_and_used_again_once_it_is_back(
    pair: Pair, many: Crops, many_truth: Embeddings
) -> None:
    server, _ = pair
    ended = threading.Event()

    def use(embedder: TritonBackend) -> int:
        calls = 0
        while not ended.is_set():
            np.testing.assert_allclose(embedder.encode(many[:5]), many_truth[:5], atol=1e-6)
            calls += 1
        return calls

    with (
        tritonclient.InferenceServerClient(server.grpc_url) as control,
        TritonBackend(server.grpc_url, NAME, intervals=QUICK) as embedder,
        ThreadPoolExecutor(2) as pool,
    ):
        embedder.ensure_ready()
        users = [pool.submit(use, embedder) for _ in range(2)]
        try:
            control.unload_model(PLAN)
            wait_until(lambda: serving(embedder) == f"{ONNX}:1 at {server.grpc_url}")
            _, served = embedder.encode(many[:5], return_source=True)
            assert served.sources[0].model == ONNX
            assert served.refusals[0].candidate.startswith(PLAN)
        finally:
            control.load_model(PLAN)
        try:
            wait_until(lambda: serving(embedder) == f"{PLAN}:1 at {server.grpc_url}")
        finally:
            ended.set()
        assert all(user.result() > 0 for user in users)
        _, served = embedder.encode(many[:5], return_source=True)
    assert served.sources[0].model == PLAN
    assert not served.fell_back


def test_a_version_that_was_changed_and_reloaded_in_place_is_found_at_the_next_golden_check(
    tmp_path: Path, many: Crops, many_truth: Embeddings
) -> None:
    write_siblings(tmp_path)
    intervals = replace(QUICK, prove_again_s=0.5)
    with (
        LocalTriton(tmp_path, flags=EXPLICIT, stop_timeout_s=1) as server,
        tritonclient.InferenceServerClient(server.grpc_url) as control,
        TritonBackend(server.grpc_url, NAME, intervals=intervals) as embedder,
    ):
        embedder.encode(many)
        onnx.save(tiny_serving_graph(1, skew=0.3), tmp_path / PLAN / "1" / "model.onnx")
        control.load_model(PLAN)
        wait_until(lambda: "drift 0.04" in (embedder.diagnostics().candidates[0].reason or ""))
        assert serving(embedder) == f"{ONNX}:1 at {server.grpc_url}"
        embeddings, served = embedder.encode(many, return_source=True)
        assert "drift 0.04" in served.refusals[0].reason
    np.testing.assert_allclose(embeddings, many_truth, atol=1e-6)


def test_a_candidate_that_comes_and_goes_does_not_make_the_choice_flap(pair: Pair, many: Crops) -> None:
    server, _ = pair
    # It is checked soon after it is back, and cools down for longer than the test lasts.
    intervals = Intervals(recheck_s=0.05, cooldown_s=600, longest_cooldown_s=600)
    chosen: list[str | None] = []
    with (
        tritonclient.InferenceServerClient(server.grpc_url) as control,
        TritonBackend(server.grpc_url, NAME, intervals=intervals) as embedder,
    ):

        def state_of_plan() -> str:
            return embedder.diagnostics().candidates[0].state

        embedder.ensure_ready()
        assert serving(embedder) == f"{PLAN}:1 at {server.grpc_url}"
        for _ in range(3):
            control.unload_model(PLAN)
            try:
                wait_until(lambda: state_of_plan() in ("failing", "refused"))
                embedder.encode(many[:1])
                chosen.append(serving(embedder))
            finally:
                control.load_model(PLAN)
            wait_until(lambda: state_of_plan() not in ("failing", "refused"))
            assert state_of_plan() == "cooling down"
            _, served = embedder.encode(many[:1], return_source=True)
            assert served.sources[0].model == ONNX
            chosen.append(serving(embedder))
    assert chosen == [f"{ONNX}:1 at {server.grpc_url}"] * 6


COUNT = 5000


@pytest.fixture(scope="module")
def unlike() -> Crops:
    """Crops of which no two have the same embedding."""
    coarse = np.random.default_rng(11).integers(0, 256, (COUNT, 7, 7, 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def unlike_truth(unlike: Crops, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    return tiny_embeddings(tmp_path_factory.mktemp("truth"), unlike)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siblings(tmp_path_factory.mktemp("siblings"))


def test_a_server_killed_and_started_again_in_the_middle_costs_no_crop(
    repository: Path, unlike: Crops, unlike_truth: Embeddings, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        victim = ExitStack()
        first = victim.enter_context(LocalTriton(repository, stop_timeout_s=1))
        url = first.grpc_url
        embedder = stack.enter_context(TritonBackend(url, NAME, intervals=QUICK))
        embedder.ensure_ready()
        call = pool.submit(embedder.encode, unlike, timeout_s=60, return_source=True)
        with victim:
            wait_until(lambda: answered(first) > COUNT // 32 // 5)
            os.kill(first.pid, signal.SIGKILL)
        port = int(url.rpartition(":")[2])
        stack.enter_context(LocalTriton(repository, grpc_port=port, stop_timeout_s=1))
        embeddings, served = call.result()
    np.testing.assert_allclose(embeddings, unlike_truth, atol=1e-6)
    assert sum(source.crops for source in served.sources) == COUNT
    assert [source.where for source in served.sources] == [url]
    assert f"{PLAN}:1 at {url}: No Triton server is ready" in caplog.text


def test_a_server_that_comes_back_with_another_model_does_not_go_on_with_a_call(
    repository: Path, unlike: Crops, tmp_path: Path
) -> None:
    write_siblings(tmp_path, skew=0.1)
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        with LocalTriton(repository, stop_timeout_s=1) as first:
            port = int(first.grpc_url.rpartition(":")[2])
            embedder = stack.enter_context(TritonBackend(first.grpc_url, NAME, intervals=QUICK))
            embedder.ensure_ready()
            call = pool.submit(embedder.encode, unlike)
            wait_until(lambda: answered(first) > COUNT // 32 // 5)
            os.kill(first.pid, signal.SIGKILL)
        stack.enter_context(LocalTriton(tmp_path, grpc_port=port, stop_timeout_s=1))
        with pytest.raises(NoCandidateError, match=r"tiny_trt:1 .* another source model, .* drift 0\.00"):
            call.result()
