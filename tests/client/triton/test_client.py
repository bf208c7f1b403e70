"""EmbeddingClient and the real Triton; test_faults.py has servers that fail."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc as tritonclient

from arcface_client import EmbeddingClient
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import (
    ArcFaceError,
    ClientClosedError,
    ContractError,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoCandidateError,
    ServerBusyError,
    ServerError,
)
from arcface_server import LocalTriton
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.tiny import write_tiny_repository

TINY = "tiny_onnx"


@pytest.fixture
def client(triton: LocalTriton) -> Iterator[EmbeddingClient]:
    with EmbeddingClient(triton.grpc_url, TINY) as client:
        yield client


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_any_number_of_crops_is_embedded_in_order(
    client: EmbeddingClient, crops: Crops, expected: Embeddings, count: int
) -> None:
    embeddings = client.encode(crops[:count])
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (count, 512)
    assert embeddings.flags.writeable
    np.testing.assert_allclose(embeddings, expected[:count], atol=1e-6)
    np.testing.assert_allclose(client.encode(list(crops[:count])), embeddings, atol=1e-7)


@pytest.mark.parametrize("count", [0, 40])
def test_the_width_of_the_embeddings_is_the_networks_own(
    triton: LocalTriton, crops: Crops, count: int
) -> None:
    with EmbeddingClient(triton.grpc_url, "narrow_onnx") as client:
        assert client.embedding_dim is None
        assert client.encode(crops[:count]).shape == (count, 128)
        assert client.embedding_dim == 128


def test_rgb_crops_give_the_embeddings_of_the_same_bgr_crops(
    client: EmbeddingClient, crops: Crops, expected: Embeddings
) -> None:
    np.testing.assert_allclose(client.encode(crops[..., ::-1], color="rgb"), expected, atol=1e-6)
    assert np.abs(client.encode(crops[..., ::-1]) - expected).max() > 0.01


def test_the_newest_version_serves_unless_one_is_named(triton: LocalTriton, crops: Crops) -> None:
    def by(version: int | None) -> NDArray[np.float32]:
        with EmbeddingClient(triton.grpc_url, TINY, version) as client:
            return client.encode(crops[:4])

    np.testing.assert_array_equal(by(None), by(2))
    assert np.abs(by(1) - by(2)).max() > 0.01


def test_a_stream_keeps_order_and_reads_only_a_few_batches_ahead(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    taken = 0

    def source() -> Iterator[Crops]:
        nonlocal taken
        for crop in np.concatenate([crops] * 5):
            taken += 1
            yield crop

    done = 0
    with EmbeddingClient(triton.grpc_url, TINY, max_in_flight=2) as client:
        for embeddings in client.stream(source()):
            wanted = np.concatenate([expected] * 5)[done : done + len(embeddings)]
            np.testing.assert_allclose(embeddings, wanted, atol=1e-6)
            assert taken - done <= 3 * 32
            done += len(embeddings)
    assert done == taken == 500


def test_the_deadline_holds_for_the_whole_call(triton: LocalTriton, crops: Crops) -> None:
    with EmbeddingClient(triton.grpc_url, "slow_onnx", max_in_flight=1) as client:
        client.encode(crops[:1])
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.encode(crops, timeout_s=1.0)
        assert time.monotonic() - started < 6, "of 60 that a request has"


def test_a_request_has_a_limit_of_its_own(triton: LocalTriton, crops: Crops) -> None:
    with (
        EmbeddingClient(triton.grpc_url, "slow_onnx", request_timeout_s=0.05) as client,
        pytest.raises(DeadlineExceededError, match=r"No answer from slow_onnx at .* within 0\.05"),
    ):
        client.encode(crops[:2])


@pytest.mark.parametrize(
    ("model", "version", "error", "message"),
    [
        ("arcface", None, ModelNotFoundError, r"no arcface at .*; the server's models: .*tiny_onnx"),
        (
            "tiny",
            None,
            ModelNotFoundError,
            r"no tiny at .*models: .*\. Did you mean tiny_onnx\?",
        ),
        (TINY, 9, ModelNotFoundError, r"no tiny_onnx:9 at .*; its versions: 1, 2"),
        (
            "broken_onnx",
            None,
            ModelNotReadyError,
            r"broken_onnx at .* the server could not load it: .*model.onnx",
        ),
        ("other", None, ContractError, r"data FP32\[N, 3, 112, 112\].*; expected image UINT8\[N, 112"),
    ],
    ids=["unknown model", "a family's name", "unknown version", "not loaded", "other tensors"],
)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(
    triton: LocalTriton,
    crops: Crops,
    model: str,
    version: int | None,
    error: type[ArcFaceError],
    message: str,
) -> None:
    with EmbeddingClient(triton.grpc_url, model, version) as client:
        with pytest.raises(error, match=message):
            client.encode(crops[:1])
        with pytest.raises(error, match=message):
            client.ensure_ready()


def test_a_model_that_was_never_asked_to_load_is_told_so_and_how_to_load_it(
    tmp_path: Path, crops: Crops
) -> None:
    write_tiny_repository(tmp_path, TINY)
    write_tiny_repository(tmp_path, "other_onnx")
    flags = ("--model-control-mode=explicit", "--load-model=other_onnx")
    with LocalTriton(tmp_path, flags=flags, stop_timeout_s=1) as server:
        for version in (None, 1):
            with (
                EmbeddingClient(server.grpc_url, TINY, version) as client,
                pytest.raises(
                    ModelNotReadyError, match=f"never asked to load .* --load-model={TINY}, or send POST"
                ),
            ):
                client.encode(crops[:1])
        with (
            TritonBackend(server.grpc_url, "tiny") as embedder,
            pytest.raises(NoCandidateError, match=f"never asked to load .* --load-model={TINY}"),
        ):
            embedder.ensure_ready()
        with tritonclient.InferenceServerClient(server.grpc_url) as control:
            control.load_model(TINY)
            control.unload_model(TINY)
            with EmbeddingClient(server.grpc_url, TINY) as client:
                wait_until(lambda: not any(one.state == "UNLOADING" for one in client.status().models))
                with pytest.raises(ModelNotReadyError, match="was asked to unload it"):
                    client.encode(crops[:1])


def test_an_answer_without_data_is_a_server_error_and_the_next_candidate_serves(crops: Crops) -> None:
    message = r"fake_onnx.* without the embeddings' data .*size 0 .*pip install 'numpy<2'"
    with (
        served(FakeTriton(model="fake_onnx", empty=True)) as url,
        served(FakeTriton(model="fake_onnx")) as other,
        EmbeddingClient(url, "fake_onnx") as client,
        TritonBackend([url, other], "fake") as embedder,
    ):
        with pytest.raises(ServerError, match=message):
            client.encode(crops[:8])
        _, answer = embedder.encode(crops[:8], return_source=True, timeout_s=60)
        assert [source.where for source in answer.sources] == [other]
        assert [re.search(message, one.reason) is not None for one in answer.refusals] == [True]


def test_status_tells_every_version_and_why_one_is_not_ready(client: EmbeddingClient) -> None:
    status = client.status()
    assert status.ready
    assert {(model.name, model.version) for model in status.models if model.ready} == {
        (TINY, 1),
        (TINY, 2),
        ("slow_onnx", 1),
        ("narrow_onnx", 1),
        ("other", 1),
    }
    (broken,) = [model for model in status.models if not model.ready]
    assert broken.name == "broken_onnx"
    assert "model.onnx" in broken.reason


def test_a_closed_client_says_so(triton: LocalTriton, crops: Crops) -> None:
    client = EmbeddingClient(triton.grpc_url, TINY)
    client.close()
    client.close()
    with pytest.raises(ClientClosedError, match="closed; make a new one"):
        client.encode(crops[:1])
    with pytest.raises(ClientClosedError):
        client.status()


@pytest.mark.faults
def test_a_full_queue_is_told_from_no_server_where_models_are_not_listed(
    tmp_path: Path, crops: Crops
) -> None:
    write_tiny_repository(tmp_path, max_batch_size=1, work=10, queue=1)
    flags = ("--grpc-restricted-protocol=model-repository:key=value",)
    with (
        LocalTriton(tmp_path, flags=flags, stop_timeout_s=1) as server,
        EmbeddingClient(server.grpc_url, TINY, max_in_flight=64) as client,
        pytest.raises(ServerBusyError),
    ):
        client.encode(crops)


@pytest.mark.faults
def test_a_version_that_is_loaded_in_the_middle_is_not_mixed_into_a_call(
    tmp_path: Path, crops: Crops
) -> None:
    folder = write_tiny_repository(tmp_path / "models", "moving_onnx", max_batch_size=2, work=8)
    with (
        LocalTriton(
            tmp_path / "models", flags=["--model-control-mode=explicit", "--load-model=moving_onnx"]
        ) as server,
        EmbeddingClient(server.grpc_url, "moving_onnx", max_in_flight=2) as client,
    ):
        answers = client.stream(crops[:40])
        first = next(answers)
        write_tiny_repository(tmp_path / "later", "moving_onnx", versions=(2,), max_batch_size=2, work=8)
        (tmp_path / "later" / "moving_onnx" / "2").rename(folder / "2")
        with tritonclient.InferenceServerClient(server.grpc_url) as control:
            control.load_model("moving_onnx")
            assert control.is_model_ready("moving_onnx", "2")
        embeddings = np.concatenate([first, *answers])
        with EmbeddingClient(server.grpc_url, "moving_onnx", 1) as pinned:
            np.testing.assert_allclose(embeddings, pinned.encode(crops[:40]), atol=1e-6)
        assert np.abs(client.encode(crops[:2]) - embeddings[:2]).max() > 0.01  # the newest from now on
