"""Plans behind a real Triton, and the ONNX sibling if a plan cannot serve."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.repository.plans import AddedPlan, add_plans
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.store.stored import StoredPlan
from arcface_builder.trt.gpu import Gpu
from arcface_client import EmbeddingClient, get_embedding_backend
from arcface_client.cli.app import main
from arcface_client.errors import ArcFaceError
from arcface_client.models.manifest import manifest_path
from arcface_server import LocalTriton
from support.gpu_models import Model

MIB = 1 << 20
Damage = Callable[[ModelRepository, AddedPlan], None]


def test_triton_serves_the_embeddings_of_the_runtime(r18: Model, r18_plan: AddedPlan) -> None:
    from arcface_client.runtimes.tensorrt import TensorRt

    crops = faces.face_like(32, seed=6)
    runtime = TensorRt(r18_plan.path)
    expected = runtime.embed(crops)
    alone = runtime.embed(crops[:1])
    runtime.close()

    with LocalTriton(r18.repository.root) as server, EmbeddingClient(server.grpc_url, "r18_trt") as client:
        np.testing.assert_array_equal(client.encode(crops), expected)
        np.testing.assert_array_equal(client.encode(crops[:1]), alone)
        # Two instances answer at once; batches are as they were sent, so the kernels are the same.
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _: client.encode(crops), range(40)):
                np.testing.assert_array_equal(got, expected)
        with EmbeddingClient(server.grpc_url, "r18_onnx") as sibling:
            drift = 1 - np.sum(sibling.encode(crops[:4]) * expected[:4], axis=1)
        assert drift.max() < 2e-4


def test_every_gpu_serves(small: Model, small_plan: AddedPlan) -> None:
    from cuda.bindings import runtime as cudart

    from arcface_client.runtimes import cuda

    if cuda.device_count() < 2:
        pytest.skip("needs two GPUs")

    def free_on_the_second() -> int:
        cuda.check(cudart.cudaSetDevice(1))
        try:
            return cuda.free_bytes()
        finally:
            cuda.check(cudart.cudaSetDevice(0))

    crops = faces.noise(8)
    before = free_on_the_second()
    with (
        LocalTriton(small.repository.root) as server,
        EmbeddingClient(server.grpc_url, "small_trt") as client,
    ):
        assert before - free_on_the_second() > 64 * MIB
        expected = client.encode(crops)
        with ThreadPoolExecutor(8) as pool:  # more than the instances of one GPU
            for got in pool.map(lambda _: client.encode(crops), range(200)):
                np.testing.assert_array_equal(got, expected)


def test_compare_finds_the_plan_equal_to_its_onnx_sibling_and_faster(
    r18: Model, r18_plan: AddedPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    with LocalTriton(r18.repository.root) as server:
        code = main(["compare", "r18_onnx", "r18_trt", "--url", server.grpc_url, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert code == 0, found["result"]
    (pair,) = found["pairs"]
    assert (pair["baseline"], pair["other"]) == ("r18_onnx:1", "r18_trt:1")
    assert 0 < pair["drift_max"] < 2e-4
    onnx, plan = found["backends"]
    assert all(speed["speedup"] == 1 for speed in onnx["speed"])
    assert all(speed["speedup"] > 1 for speed in plan["speed"])


def removed(repository: ModelRepository, plan: AddedPlan) -> None:
    (repository.root / "small_trt" / "1" / plan.path.name).unlink()


def corrupted(repository: ModelRepository, plan: AddedPlan) -> None:
    path = repository.root / "small_trt" / "1" / plan.path.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_tensorrt(repository: ModelRepository, plan: AddedPlan) -> None:
    record = manifest_path(repository.root, "small_trt", 1, plan.manifest.identity.sm)
    manifest = json.loads(record.read_text())
    manifest["identity"]["tensorrt_version"] = "99.0.0.1"
    record.write_text(json.dumps(manifest))


def of_another_gpu(repository: ModelRepository, plan: AddedPlan) -> None:
    """Leave nothing but a plan with another architecture's name."""
    shutil.rmtree(repository.root / "small_trt")
    manifest_path(repository.root, "small_trt", 1, plan.manifest.identity.sm).unlink()
    other = "80" if plan.manifest.identity.sm != "80" else "90"
    identity = dataclasses.replace(plan.manifest.identity, sm=other)
    engine = StoredPlan(plan.path, dataclasses.replace(plan.manifest, identity=identity))
    add_plans(repository, [engine], version=1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (removed, "No plan at "),
        (corrupted, "its manifest says"),
        (of_another_tensorrt, "was built by TensorRT 99.0.0.1, and TensorRT "),
        (of_another_gpu, "has plans for compute capability"),
    ],
    ids=["removed", "corrupted", "another TensorRT", "another GPU"],
)
def test_if_the_plan_cannot_serve_its_reason_is_shown_and_the_onnx_sibling_serves(
    damage: Damage, reason: str, small: Model, small_plan: AddedPlan, gpu: Gpu, tmp_path: Path
) -> None:
    shutil.copytree(small.repository.root, tmp_path / "models")
    damage(ModelRepository(tmp_path / "models"), small_plan)

    with LocalTriton(tmp_path / "models") as server:
        with EmbeddingClient(server.grpc_url, "small_trt") as client, pytest.raises(ArcFaceError) as raised:
            client.encode(faces.noise(2))
        with get_embedding_backend(
            "triton",
            allow_cpu_fallback=False,
            triton_url=server.grpc_url,
            embedding_model="small",
            embedding_model_repository=tmp_path / "models",
        ) as embedder:
            embeddings, served = embedder.encode(faces.noise(2), return_source=True)

    assert reason in str(raised.value)
    assert [source.model for source in served.sources] == ["small_onnx"]
    assert [refusal.candidate.partition(":")[0] for refusal in served.refusals] == ["small_trt"]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
