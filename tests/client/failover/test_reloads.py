"""A version that is loaded anew under the client: noticed, and out until it is proved again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tritonclient import grpc as tritonclient
from tritonclient.grpc import service_pb2

from arcface_client.backends.triton import TritonBackend
from arcface_client.contract import Crops
from arcface_client.errors import NoCandidateError
from arcface_client.failover import run as fallback
from arcface_client.failover.discovery import Wanted
from arcface_client.failover.examiner import Examiner
from arcface_client.failover.intervals import Rhythm
from arcface_client.failover.loads import Loads
from arcface_client.failover.pool import Selector
from arcface_client.failover.server import RequestLimits
from arcface_client.models.golden import golden_crops
from arcface_client.triton.deadline import Deadline
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.siblings import EXPLICIT, NAME, ONNX, PLAN, SELDOM, tiny_embeddings, write_siblings
from support.tiny import tiny_serving_graph, write_tiny_repository

pytestmark = pytest.mark.faults


class CountingTriton(FakeTriton):
    """Says how many requests it has counted."""

    counted = 0

    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = service_pb2.ModelStatisticsResponse()
        model = response.model_stats.add(name=self.model, version="1")
        model.inference_stats.success.count = self.counted
        return response


@pytest.fixture
def fake() -> CountingTriton:
    return CountingTriton(model="fake_onnx")


@pytest.fixture
def selector(fake: CountingTriton) -> Iterator[Selector]:
    examiner = Examiner(lambda model, version: None, 0.001)
    with served(fake) as url:
        selector = Selector(Wanted((url,), "fake"), examiner, RequestLimits(), Rhythm())
        yield selector
        selector.close()


def serves(selector: Selector) -> bool:
    return bool(selector.look(Deadline(None)).ranking)


def test_a_call_that_a_look_divides_is_not_held_against_the_server() -> None:
    loads = Loads()
    loads.seen(100)
    begun = loads.begin()
    loads.answered(5, loads.begin())
    assert loads.least == 105
    loads.seen(110)
    loads.answered(9, begun)
    assert loads.least == 110


def test_what_was_loaded_anew_is_out_until_it_is_proved_though_its_queue_is_full(
    fake: CountingTriton, selector: Selector
) -> None:
    fake.counted = 100
    assert serves(selector)
    fake.counted = 108
    assert serves(selector)
    fake.counted = 20
    fake.failures = [grpc.StatusCode.UNAVAILABLE]
    assert not serves(selector)
    assert serves(selector)
    # To be loaded anew is no failure, after which it would have to settle.
    (contender,) = selector.standing.ranking
    assert contender.breaker.state == "closed"


def test_a_call_in_the_middle_of_which_it_was_loaded_anew_is_done_anew(
    fake: CountingTriton, crops: Crops
) -> None:
    rhythm = Rhythm(recheck_s=600, examination_s=0.3)
    with (
        served(fake) as url,
        TritonBackend(url, "fake", rhythm=rhythm) as embedder,
        ThreadPoolExecutor(1) as pool,
    ):
        embedder.ensure_ready()
        fake.counted = 100
        embedder._selector.look(Deadline(None))
        fake.answers.clear()
        try:
            asked = fake.requests
            call = pool.submit(embedder.encode, crops[:3])
            wait_until(lambda: fake.requests > asked)
            fake.counted, fake.value = 0, -(512**-0.5)
            assert not embedder._selector.look(Deadline(None)).ranking
        finally:
            fake.answers.set()
        with pytest.raises(NoCandidateError, match="another source model"):
            call.result(timeout=30)


@pytest.fixture
def one_by_one(fake: CountingTriton, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonBackend]:
    """An embedder that sends crop by crop, and pauses for a second where the server is full."""
    monkeypatch.setattr(fallback, "BUSY_WAITS_S", (1.0,))
    fake.max_batch_size = 1
    limits = RequestLimits(max_in_flight=1)
    with served(fake) as url, TritonBackend(url, "fake", limits=limits, rhythm=SELDOM) as embedder:
        embedder.ensure_ready()
        fake.counted = 100
        embedder._selector.look(Deadline(None))
        yield embedder


def test_a_call_that_pauses_sends_nothing_to_who_was_loaded_anew_meanwhile(
    fake: CountingTriton, one_by_one: TritonBackend, crops: Crops
) -> None:
    asked = fake.requests
    # A crop is embedded, the queue is full twice, and in the pause another model is loaded.
    fake.failures = [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(one_by_one.encode, crops[:3])
        wait_until(lambda: fake.requests == asked + 3)
        fake.counted, fake.value = 0, -(512**-0.5)
        one_by_one._selector._notice_reloads(one_by_one._selector.servers[0], Deadline(None), 5)
        assert not one_by_one._selector.standing.ranking
        with pytest.raises(NoCandidateError, match="another source model"):
            call.result(timeout=30)
    golden = -(-len(golden_crops()) // fake.max_batch_size)
    assert fake.requests == asked + 3 + golden, "the golden crops alone"


def test_a_call_that_pauses_does_anew_what_it_did_before_a_reload(
    fake: CountingTriton, one_by_one: TritonBackend, crops: Crops
) -> None:
    asked = fake.requests
    fake.failures = [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(one_by_one.encode, crops[:3], return_source=True)
        wait_until(lambda: fake.requests == asked + 3)
        fake.counted = 0
        assert one_by_one._selector.look(Deadline(None)).ranking, "it is proved again within the pause"
        _, report = call.result(timeout=30)
    # One before, two that were not taken, the golden crops, two that were missing, and then all three.
    assert fake.requests == asked + 1 + 2 + len(golden_crops()) + 2 + 3
    assert [source.crops for source in report.sources] == [3]


def test_a_reload_that_traffic_has_overtaken_since_the_last_look_is_noticed(
    tmp_path: Path, crops: Crops
) -> None:
    write_siblings(tmp_path)
    with (
        LocalTriton(tmp_path, flags=EXPLICIT, stop_timeout_s=1) as server,
        tritonclient.InferenceServerClient(server.grpc_url) as control,
        TritonBackend(server.grpc_url, NAME, rhythm=SELDOM) as embedder,
    ):
        embedder.ensure_ready()
        ranking = embedder._selector.look(Deadline(None)).ranking
        assert [contender.candidate.model for contender in ranking] == [PLAN, ONNX]
        onnx.save(tiny_serving_graph(1, skew=0.3), tmp_path / PLAN / "1" / "model.onnx")
        control.load_model(PLAN)
        embedder.encode(crops)
        ranking = embedder._selector.look(Deadline(None)).ranking
        assert [contender.candidate.model for contender in ranking] == [ONNX]


def test_traffic_alone_is_no_reload(tmp_path: Path, crops: Crops, caplog: pytest.LogCaptureFixture) -> None:
    write_siblings(tmp_path)
    with (
        LocalTriton(tmp_path, stop_timeout_s=1) as server,
        TritonBackend(server.grpc_url, NAME, rhythm=SELDOM) as embedder,
    ):
        embedder.ensure_ready()
        for _ in range(20):
            embedder.encode(crops[:7])
            embedder._selector.look(Deadline(None))
    assert "loaded it anew" not in caplog.text


def test_a_pin_without_a_version_is_held_to_the_one_that_was_examined(tmp_path: Path, crops: Crops) -> None:
    write_tiny_repository(tmp_path)
    flags = (*EXPLICIT, "--grpc-restricted-protocol=model-repository:key=value")
    with (
        LocalTriton(tmp_path, flags=flags, stop_timeout_s=1) as server,
        tritonclient.InferenceServerClient(server.grpc_url) as control,
        TritonBackend(server.grpc_url, NAME, [ONNX], rhythm=SELDOM) as embedder,
    ):
        embedder.ensure_ready()
        (tmp_path / ONNX / "2").mkdir()
        onnx.save(tiny_serving_graph(2), tmp_path / ONNX / "2" / "model.onnx")
        control.load_model(ONNX, headers={"triton-grpc-protocol-key": "value"})
        assert control.is_model_ready(ONNX, "2")
        embeddings = embedder.encode(crops[:9])
    np.testing.assert_allclose(embeddings, tiny_embeddings(tmp_path, crops[:9]), atol=1e-6)
