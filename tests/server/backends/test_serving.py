from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from arcface_client import EmbeddingClient
from arcface_client.contract import CROP_SHAPE, INPUT_NAME, OUTPUT_NAME, Crops, Embeddings
from arcface_client.errors import ConfigError
from arcface_client.models.golden import largest_drift
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from arcface_server.backends.config import InstanceConfig
from arcface_server.backends.sessions import load_model
from support.processes import command_line, cpu_seconds, group_members, thread_count, wait_until


@pytest.fixture
def crops() -> Crops:
    return np.random.default_rng(1).integers(0, 255, (3, *CROP_SHAPE), np.uint8)


def infer(
    client: grpcclient.InferenceServerClient, model: str, crops: Crops, version: str = ""
) -> Embeddings:
    tensor = grpcclient.InferInput(INPUT_NAME, list(crops.shape), "UINT8")
    tensor.set_data_from_numpy(crops)
    answer = client.infer(model, [tensor], model_version=version).as_numpy(OUTPUT_NAME)
    return np.asarray(answer, np.float32)


def infer_at_once(
    client: grpcclient.InferenceServerClient, model: str, requests: Sequence[Crops]
) -> list[Embeddings | BaseException]:
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(infer, client, model, crops) for crops in requests]
    return [future.exception() or future.result() for future in futures]


def test_each_version_serves_its_own_graph(
    client: grpcclient.InferenceServerClient, repository: Path, crops: Crops
) -> None:
    for version in ("1", "2"):
        expected = OnnxRuntime(repository / "tiny_onnx" / version / "model.onnx").embed(crops)
        np.testing.assert_allclose(infer(client, "tiny_onnx", crops, version), expected, atol=1e-6)
    newest = infer(client, "tiny_onnx", crops)
    np.testing.assert_array_equal(newest, infer(client, "tiny_onnx", crops, "2"))


@pytest.mark.parametrize(
    ("model", "largest", "drift"), [("tiny_openvino", 90, 1e-3), ("pair_openvino", 32, 1e-6)]
)
def test_openvino_takes_batches_of_any_size_and_float32_where_it_is_asked_for(
    client: grpcclient.InferenceServerClient,
    server: LocalTriton,
    crops: Crops,
    model: str,
    largest: int,
    drift: float,
) -> None:
    for batch in (crops[:1], crops, np.concatenate([crops] * 30)[:largest]):
        embeddings = infer(client, model, batch)
        assert largest_drift(infer(client, "tiny_onnx", batch[:32], "2"), embeddings[:32]) < drift
        assert embeddings.shape == (len(batch), 512)
    with EmbeddingClient(server.grpc_url, model) as embedder:
        np.testing.assert_allclose(embedder.encode(crops), infer(client, model, crops), atol=1e-6)
        assert embedder.max_batch_size == 32


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("truncated", "ONNX Runtime cannot load"),
        ("missing", "No model file at"),
        ("foreign", "has inputs image UINT8[N, 112, 112, 3] and outputs fc1 FP32[N, 512]; expected"),
        ("not_a_number", "Parameter intra_op_thread_count is 'many' in config.pbtxt; expected a number."),
        ("on_gpu", "no GPUs are available"),
        (
            "tiny_cudnn",
            "ConfigError: tiny_cudnn asks for KIND_CPU; cuDNN runs on a GPU. Set `kind: KIND_GPU`",
        ),
        ("m_trt", "instance group gpu of model m_trt has kind KIND_GPU but no GPUs are available"),
    ],
)
def test_a_model_that_cannot_load_has_its_reason_in_the_index_and_does_not_stop_the_others(
    client: grpcclient.InferenceServerClient, crops: Crops, model: str, reason: str
) -> None:
    index = {entry.name: entry for entry in client.get_model_repository_index().models}
    assert index[model].state == "UNAVAILABLE"
    assert reason in index[model].reason
    assert index["tiny_onnx"].state == "READY"
    assert infer(client, "tiny_onnx", crops).shape == (3, 512)


def test_a_model_for_any_device_serves_where_it_can_and_says_where(
    client: grpcclient.InferenceServerClient, repository: Path, server_log: Path, crops: Crops
) -> None:
    expected = OnnxRuntime(repository / "anywhere" / "1" / "model.onnx").embed(crops)

    np.testing.assert_allclose(infer(client, "anywhere", crops), expected, atol=1e-5)
    assert "anywhere: ONNX Runtime computes on " in server_log.read_text()


@pytest.mark.parametrize("gpu_is_required", [True, False])
def test_a_gpu_that_onnx_runtime_cannot_use_is_never_replaced_silently(
    gpu_is_required: bool, repository: Path, crops: Crops
) -> None:
    told: list[str] = []
    folder = repository / "anywhere" / "1"
    config = InstanceConfig(folder, "", "GPU", 99, gpu_is_required=gpu_is_required)
    logger = SimpleNamespace(log_warn=told.append)

    if gpu_is_required:
        with pytest.raises(ConfigError, match=r"asks for KIND_GPU, .* cannot use GPU 99: .*CUDA"):
            load_model("anywhere", config, logger)
    else:
        runtime = load_model("anywhere", config, logger)
        np.testing.assert_allclose(np.linalg.norm(runtime.embed(crops), axis=1), 1, atol=1e-5)
        assert told[0].startswith("anywhere: ONNX Runtime computes on the CPU, not on GPU 99: ")


@pytest.mark.parametrize(
    ("model", "version", "drift"), [("patient", "1", 1e-6), ("pair_openvino", "2", 1e-6)]
)
def test_requests_are_merged_into_one_run_and_each_gets_its_own_rows(
    client: grpcclient.InferenceServerClient,
    repository: Path,
    crops: Crops,
    model: str,
    version: str,
    drift: float,
) -> None:
    runtime = OnnxRuntime(repository / model / version / "model.onnx")
    requests = [crops[:1], crops[1:], crops]

    def counts() -> Any:
        return client.get_inference_statistics(model, version).model_stats[0]

    before = counts()
    answers = infer_at_once(client, model, requests)
    # Triton counts after it has answered.
    wait_until(lambda: counts().inference_count - before.inference_count >= 6)
    after = counts()

    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, np.ndarray), answer
        assert largest_drift(runtime.embed(request), answer) < drift
    assert after.inference_count - before.inference_count == 6
    assert after.execution_count - before.execution_count < 3


def test_the_backend_for_cudnn_gives_each_request_its_own_rows(
    client: grpcclient.InferenceServerClient, repository: Path
) -> None:
    """One large request, more than it answers one by one, and more crops than the GPU had memory for."""
    runtime = OnnxRuntime(repository / "fused" / "1" / "model.onnx")
    crops = np.random.default_rng(2).integers(0, 255, (20, *CROP_SHAPE), np.uint8)
    requests = [crops[:8], *(crops[start : start + 1 + start % 3] for start in range(16)), crops]

    for request, answer in zip(requests, infer_at_once(client, "fused", requests), strict=True):
        assert isinstance(answer, np.ndarray), answer
        np.testing.assert_allclose(answer, runtime.embed(request), atol=1e-6)
    crops[0, 0, 0, 0] = 255
    with pytest.raises(grpcclient.InferenceServerException, match="ONNX Runtime failed on a batch of 3"):
        infer(client, "fused", crops[:3])


def test_only_the_request_that_the_model_fails_on_gets_an_error(
    client: grpcclient.InferenceServerClient, crops: Crops
) -> None:
    poisoned = crops.copy()
    poisoned[0, 0, 0, 0] = 255
    bad, good = infer_at_once(client, "patient", [poisoned, crops])
    assert isinstance(bad, grpcclient.InferenceServerException)
    assert "ONNX Runtime failed on a batch of 3" in str(bad)
    assert isinstance(good, np.ndarray)


@pytest.mark.parametrize(("model", "dim"), [("narrow_onnx", 192), ("single_onnx", 64)])
def test_networks_of_any_width_and_of_one_crop_at_a_time_are_served(
    model: str, dim: int, server: LocalTriton, repository: Path, crops: Crops
) -> None:
    expected = OnnxRuntime(repository / model / "1" / "model.onnx").embed(crops)

    with EmbeddingClient(server.grpc_url, model) as client:
        embeddings = client.encode(crops)

    assert embeddings.shape == (3, dim)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)


def test_a_batch_above_the_largest_is_refused_in_one_line_and_the_next_one_is_served(
    client: grpcclient.InferenceServerClient, crops: Crops
) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 32 for 'tiny_onnx'") as refused:
        infer(client, "tiny_onnx", np.concatenate([crops] * 11))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "\n" not in refused.value.message()
    assert infer(client, "tiny_onnx", crops).shape == (3, 512)


def test_two_instances_share_the_requests(
    client: grpcclient.InferenceServerClient, server: LocalTriton, crops: Crops
) -> None:
    instances = stubs_of(server, "pair")
    assert len(instances) == 2
    before = [cpu_seconds(pid) for pid in instances]
    infer_at_once(client, "pair", [crops] * 4)
    assert all(cpu_seconds(pid) > start for pid, start in zip(instances, before, strict=True))


def test_the_configurations_thread_count_is_used(server: LocalTriton) -> None:
    (one,) = stubs_of(server, "patient")
    (four,) = stubs_of(server, "threads")
    assert thread_count(four) - thread_count(one) == 3


def stubs_of(server: LocalTriton, model: str) -> list[int]:
    return [pid for pid in group_members(server.pid) if f"/{model}/" in command_line(pid)]
