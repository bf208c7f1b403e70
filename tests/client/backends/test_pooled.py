"""Which candidate serves, and why the others do not; test_pooled_faults.py has servers that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from arcface_client import EmbeddingClient
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ClientClosedError,
    ConfigError,
    DeadlineExceededError,
    InputError,
    NoCandidateError,
    NoCandidateNowError,
    ServerBusyError,
)
from arcface_client.models.golden import GoldenReference, golden_crops
from arcface_client.observability.diagnostics import CandidateReport
from arcface_client.triton.channel import Connection
from arcface_server import LocalTriton
from support.local_models import A, B
from support.processes import wait_until
from support.siblings import NAME, Recorded, tiny_embeddings, write_siblings


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A manifest for every model, which says that it is the tiny model of seed 1."""
    reference = tiny_embeddings(tmp_path_factory.mktemp("record"), golden_crops())
    return Recorded(lambda model, version: GoldenReference(reference, A))


def report(embedder: EmbeddingBackend, candidate: str) -> CandidateReport:
    reports = embedder.diagnostics().candidates
    (found,) = (one for one in reports if one.candidate.startswith(f"{candidate} at "))
    return found


def test_the_plan_serves_and_its_onnx_sibling_stands_by(
    crowd: LocalTriton, crops: Crops, truth: Embeddings
) -> None:
    with TritonBackend(crowd.grpc_url, NAME) as embedder:
        embeddings, served = embedder.encode(crops, return_source=True)
        diagnostics = embedder.diagnostics()
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    (source,) = served.sources
    assert (source.backend, source.model, source.version, source.where, source.crops) == (
        "triton",
        "tiny_trt",
        1,
        crowd.grpc_url,
        100,
    )
    assert not served.fell_back
    assert [(one.candidate, one.state) for one in diagnostics.candidates] == [
        (f"tiny_trt:1 at {crowd.grpc_url}", "serving"),
        (f"tiny_onnx:1 at {crowd.grpc_url}", "standing by"),
    ]
    assert (diagnostics.model, diagnostics.version, diagnostics.batch_size) == ("tiny_trt", 1, 32)
    assert diagnostics.validation.reference == "onnx sibling"
    assert diagnostics.validation.regression_test == "passed"
    assert diagnostics.validation.drift_vs_reference == pytest.approx(0, abs=1e-6)
    assert diagnostics.latency_ms and diagnostics.latency_ms > 0
    assert diagnostics.throughput_fps and diagnostics.throughput_fps > 0
    assert diagnostics.counters["sources"][0]["faces"] == 100


@pytest.mark.parametrize(
    ("candidate", "serves", "drift"),
    [("wrong_trt", False, 0.3), ("slight_trt", False, 0.002), ("near_trt", True, 0.0002)],
)
def test_a_candidate_serves_only_when_its_drift_is_within_the_tolerance(
    crowd: LocalTriton,
    recorded: Recorded,
    crops: Crops,
    truth: Embeddings,
    candidate: str,
    serves: bool,
    drift: float,
) -> None:
    with TritonBackend(crowd.grpc_url, NAME, [candidate, "tiny_onnx"], records=recorded) as embedder:
        embeddings, served = embedder.encode(crops, return_source=True)
        measured = report(embedder, f"{candidate}:1").drift
    assert served.sources[0].model == (candidate if serves else "tiny_onnx")
    assert measured == pytest.approx(drift, rel=0.5)
    assert np.einsum("nd,nd->n", embeddings, truth).min() > 1 - 0.001
    if not serves:
        assert served.refusals[0].candidate.startswith(f"{candidate}:1")
        assert f"drift {measured:.2g} from the reference (manifest)" in served.refusals[0].reason


def test_a_plan_without_a_manifest_and_without_an_onnx_sibling_is_refused(
    crowd: LocalTriton, crops: Crops
) -> None:
    with (
        TritonBackend(crowd.grpc_url, NAME, ["wrong_trt:1"]) as embedder,
        pytest.raises(NoCandidateError, match="Nothing to check it against: no manifest is here"),
    ):
        embedder.encode(crops[:1])


def test_only_the_newest_release_serves_and_another_source_model_never(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    with TritonBackend(triton.grpc_url, NAME) as embedder:
        embeddings, served = embedder.encode(crops[:9], return_source=True)
        older = report(embedder, "tiny_onnx:1")
    np.testing.assert_allclose(embeddings, expected[:9], atol=1e-6)
    assert served.sources[0].version == 2
    assert older.state == "refused"
    assert older.drift is None  # nothing is recorded of it
    assert "another source model" in (older.reason or "")
    assert not served.fell_back


def test_candidates_whose_manifests_conflict_never_serve_side_by_side(
    crowd: LocalTriton, tmp_path: Path
) -> None:
    reference = tiny_embeddings(tmp_path, golden_crops())
    recorded = {"tiny_trt": A, "near_trt": B}

    def records(model: str, version: int) -> GoldenReference | None:
        return GoldenReference(reference, recorded[model]) if model in recorded else None

    candidates = ["tiny_onnx", "tiny_trt", "near_trt"]
    with TritonBackend(crowd.grpc_url, NAME, candidates, records=Recorded(records)) as embedder:
        embedder.ensure_ready()
        states = {model: report(embedder, f"{model}:1").state for model in candidates}
        reason = report(embedder, "near_trt:1").reason
    assert states == {"tiny_onnx": "serving", "tiny_trt": "standing by", "near_trt": "refused"}
    assert "another source model, SHA-256 bbbb" in (reason or "")


def test_a_network_of_another_width_serves_and_never_beside_one_of_another_width(
    triton: LocalTriton, crops: Crops
) -> None:
    with TritonBackend(triton.grpc_url, "narrow") as embedder:
        assert embedder.encode(crops[:0]).shape == (0, 128)
        assert embedder.encode(crops[:3]).shape == (3, 128)
        assert embedder.diagnostics().embedding_dim == 128
    with TritonBackend(triton.grpc_url, NAME, ["narrow_onnx", "tiny_onnx:1"]) as embedder:
        assert embedder.encode(crops[:3]).shape == (3, 128)
        other = report(embedder, "tiny_onnx:1")
    assert other.state == "refused"
    assert "another width, embeddings of 512 numbers, not 128" in (other.reason or "")


def test_every_candidate_refused_is_one_error_that_lists_them_all(triton: LocalTriton, crops: Crops) -> None:
    pins = ["other", "broken_onnx:1", "tiny_onnx:7", "nothing"]
    with TritonBackend(triton.grpc_url, NAME, pins) as embedder:
        for call in (embedder.ensure_ready, lambda: embedder.encode(crops[:1])):
            with pytest.raises(NoCandidateError) as caught:
                call()
            text = str(caught.value)
            assert "other:1" in text and "expected image UINT8[N, 112, 112, 3]" in text
            assert "broken_onnx:1" in text and "could not load it: " in text
            assert "tiny_onnx:7" in text and "its versions: 1, 2" in text
            assert "nothing at" in text and "the server's models: " in text
            assert "\n" not in text


def test_a_preferred_server_that_is_away_is_reported_though_another_serves(
    crowd: LocalTriton, crops: Crops
) -> None:
    with TritonBackend(["127.0.0.1:9", crowd.grpc_url, "127.0.0.1:10"], NAME) as embedder:
        _, served = embedder.encode(crops[:1], return_source=True)
    assert served.sources[0].where == crowd.grpc_url
    assert [refusal.candidate for refusal in served.refusals] == ["any model at 127.0.0.1:9"]


def test_that_no_server_is_there_is_reported_soon_for_all_of_them(crops: Crops) -> None:
    with (
        TritonBackend(["127.0.0.1:9", "127.0.0.1:10"], NAME) as embedder,
        pytest.raises(
            NoCandidateNowError, match=r"any model at 127\.0\.0\.1:9: .*; any model at 127\.0\.0\.1:10: "
        ),
    ):
        embedder.encode(crops[:1])


def test_a_server_that_is_gone_is_asked_again_until_the_deadline(crops: Crops) -> None:
    with (
        TritonBackend("127.0.0.1:9", NAME) as embedder,
        pytest.raises(DeadlineExceededError, match=r"call, 1\.6 s, is over; .*No Triton server is ready"),
    ):
        embedder.encode(crops[:1], timeout_s=1.6)


@contextmanager
def crowded(server: LocalTriton, model: str, crops: Crops) -> Iterator[None]:
    """Keep the queue of a model full."""
    ended = threading.Event()

    def crowd_in() -> None:
        client = EmbeddingClient(model=model, connection=connection)
        while not ended.is_set():
            with suppress(ServerBusyError):
                client.encode(crops[:1])

    connection = Connection(server.grpc_url, retries=False)
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(crowd_in) for _ in range(6)]
        try:
            yield
        finally:
            ended.set()
    for other in others:
        other.result()
    connection.close()


def test_a_full_queue_is_tried_again_and_then_left_to_the_next(
    crowd: LocalTriton, recorded: Recorded, crops: Crops, truth: Embeddings
) -> None:
    with TritonBackend(crowd.grpc_url, NAME, ["full_trt", "tiny_onnx"], records=recorded) as embedder:
        embedder.ensure_ready()

        def left_to_the_next() -> bool:
            embeddings, served = embedder.encode(crops[:2], return_source=True)
            np.testing.assert_allclose(embeddings, truth[:2], atol=1e-6)
            assert served.fell_back == (served.sources[-1].model == "tiny_onnx")
            return served.fell_back

        with crowded(crowd, "full_trt", crops):
            wait_until(left_to_the_next)
        assert embedder.diagnostics().counters["fallbacks"]["ServerBusyError"] == 1
        # A full queue takes no candidate out.
        assert report(embedder, "full_trt:1").state == "serving"


def test_a_call_waits_for_the_full_queue_of_the_only_candidate_until_its_deadline(
    crowd: LocalTriton, recorded: Recorded, crops: Crops
) -> None:
    with TritonBackend(crowd.grpc_url, NAME, ["full_trt"], records=recorded) as embedder:
        embedder.ensure_ready()
        with pytest.raises(
            DeadlineExceededError, match=r"for the whole call, 0.5 s, is over; .* of 100 crops"
        ):
            embedder.encode(crops, timeout_s=0.5)
        assert embedder.encode(crops[:4]).shape == (4, 512)


def test_empty_input_is_answered_without_a_server_once_the_width_is_known(
    crowd: LocalTriton, crops: Crops
) -> None:
    with TritonBackend(crowd.grpc_url, NAME) as embedder:
        embedder.ensure_ready()
        embeddings, served = embedder.encode([], return_source=True)
    assert embeddings.shape == (0, 512)
    assert served.sources == ()
    with TritonBackend("127.0.0.1:9", NAME) as embedder, pytest.raises(NoCandidateNowError):
        embedder.encode([])


def test_a_closed_backend_refuses_calls_and_ends_its_threads(crowd: LocalTriton, crops: Crops) -> None:
    embedder = TritonBackend(crowd.grpc_url, NAME)
    embedder.encode(crops[:1])
    threads = {thread.name for thread in threading.enumerate()}
    assert {"arcface-health"} <= threads
    embedder.close()
    embedder.close()
    wait_until(lambda: "arcface-health" not in {thread.name for thread in threading.enumerate()})
    with pytest.raises(ClientClosedError):
        embedder.encode(crops[:1])
    assert embedder.diagnostics().model is None
    assert embedder.diagnostics().counters["sources"][0]["faces"] == 1


def test_arguments_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="max_drift_cosine is 0"):
        TritonBackend("localhost:1", max_drift_cosine=0)
    with pytest.raises(ConfigError, match="expected host:port"):
        TritonBackend(["localhost:1", "http://localhost"])
    with pytest.raises(ConfigError, match="no server's URL"):
        TritonBackend([])


def test_a_server_that_does_not_list_its_models_can_be_used_by_pins(
    tmp_path: Path, crops: Crops, truth: Embeddings
) -> None:
    write_siblings(tmp_path)
    flags = ("--grpc-restricted-protocol=model-repository:key=value",)
    with LocalTriton(tmp_path, flags=flags, stop_timeout_s=1) as server:
        with TritonBackend(server.grpc_url, NAME, ["tiny_onnx:1", "tiny_trt"]) as embedder:
            embeddings, served = embedder.encode(crops, return_source=True)
            assert report(embedder, "tiny_trt").state == "standing by"
        with TritonBackend(server.grpc_url, NAME, ["tiny_onnx"]) as embedder:
            _, by_the_newest = embedder.encode(crops[:1], return_source=True)
            diagnostics = embedder.diagnostics()
        with (
            TritonBackend(server.grpc_url, NAME) as embedder,
            pytest.raises(NoCandidateError, match="name them as candidates"),
        ):
            embedder.ensure_ready()
    np.testing.assert_allclose(embeddings, truth, atol=1e-6)
    assert (served.sources[0].model, served.sources[0].version) == ("tiny_onnx", 1)
    assert by_the_newest.sources[0].version == 1, "the one that answered, though the pin names none"
    assert diagnostics.version == 1
    assert diagnostics.engine_path == f"{server.grpc_url}/tiny_onnx/1"
