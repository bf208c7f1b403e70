"""The cuDNN runtime, in this process and behind a real Triton. Needs cuDNN and no TensorRT."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.cli.app import main
from arcface_builder.graph.quantise import calibrate, to_graph
from arcface_builder.source.load import OnnxFile, Synthetic
from arcface_client import EmbeddingClient, get_embedding_backend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ClientClosedError, CudaError, InputError
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.runtimes.base import in_batches
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from support.exports import small_arcface

if TYPE_CHECKING:
    from arcface_client.runtimes.cudnn.runtime import Cudnn

MIB = 1 << 20
LARGEST = 8


@pytest.fixture(scope="module", autouse=True)
def cudnn(pytestconfig: pytest.Config) -> Any:
    from arcface_client.errors import ArcFaceError, require

    try:
        runtime = require("arcface_client.runtimes.cudnn.runtime", extra="cudnn", purpose="This test")
        runtime.cudnn_version()
        from arcface_client.runtimes import cuda

        if not cuda.device_count():
            raise CudaError("There is no GPU.")
    except ArcFaceError as error:
        if pytestconfig.getoption("markexpr") == "gpu":  # `make test-gpu` must fail without it
            raise
        pytest.skip(f"needs a GPU and cuDNN: {error}")
    return runtime


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serving graph with every structure of an IResNet."""
    folder = tmp_path_factory.mktemp("small")
    onnx.save(small_arcface(channels=32), folder / "source.onnx")
    return build(OnnxFile(folder / "source.onnx"), name="small", repository=folder).path / "model.onnx"


@pytest.fixture
def small(cudnn: Any, graph: Path, cache: Path) -> Iterator[Cudnn]:
    runtime = cudnn.Cudnn(graph, max_batch_size=LARGEST, cache=cache)
    yield runtime
    runtime.close()


def exact(path: Path, crops: Crops) -> Embeddings:
    (embeddings,) = onnxruntime.InferenceSession(path).run(None, {"image": crops})
    return np.asarray(embeddings)


def free_bytes() -> int:
    from arcface_client.runtimes import cuda

    return cuda.free_bytes()


def test_every_batch_size_gives_the_embeddings_of_the_graph(small: Cudnn, graph: Path) -> None:
    crops = faces.noise(LARGEST, seed=1)
    expected = exact(graph, crops)

    for count in range(1, LARGEST + 1):
        assert largest_drift(expected[:count], small.embed(crops[:count])) < 1e-5
    joined = small.embed_joined([crops[:3], crops[3:]])
    assert largest_drift(expected, joined) < 1e-5
    for count in (0, LARGEST + 1):
        with pytest.raises(InputError, match=f"The batch has {count} crops; the model takes 1 to 8"):
            small.embed(np.zeros((count, 112, 112, 3), np.uint8))


def test_slopes_above_one_and_below_zero_are_right(
    cudnn: Any, graph: Path, cache: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph)
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if "slope" in tensor.name:
            slopes = random.uniform(-1.5, 2.5, tensor.dims).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(slopes, tensor.name))
    onnx.save(model, tmp_path / "steep.onnx")
    crops = faces.noise(2)

    runtime = cudnn.Cudnn(tmp_path / "steep.onnx", max_batch_size=2, cache=cache)

    assert largest_drift(exact(tmp_path / "steep.onnx", crops), runtime.embed(crops)) < 1e-5
    runtime.close()


@pytest.mark.parametrize(("left", "precision"), [(0, "int8"), (2, "mixed")])
def test_int8_convolutions_give_the_embeddings_of_the_quantised_graph(
    cudnn: Any, graph: Path, cache: Path, tmp_path: Path, left: int, precision: str
) -> None:
    calibrated = calibrate(graph.read_bytes(), faces.noise(40, seed=2))
    quantised = to_graph(calibrated, calibrated.usual[left:], precision)
    (tmp_path / "int8.onnx").write_bytes(quantised.content)
    crops = faces.noise(LARGEST)
    expected = exact(tmp_path / "int8.onnx", crops)

    runtime = cudnn.Cudnn(tmp_path / "int8.onnx", max_batch_size=LARGEST, cache=cache)

    assert runtime.precision == precision
    for count in (1, 3, LARGEST):
        # Sums in another order round some numbers to the next one; int8 itself drifts by 2e-3.
        assert largest_drift(expected[:count], runtime.embed(crops[:count])) < 5e-4
    runtime.close()


def test_a_damaged_cache_is_made_again(
    cudnn: Any, graph: Path, cache: Path, tmp_path: Path, small: Cudnn, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    (damaged, *_) = (tmp_path / "cache").rglob("conv-1x*-residual.plan")
    damaged.write_bytes(b"no plan")
    crops = faces.noise(1)

    runtime = cudnn.Cudnn(graph, max_batch_size=1, cache=tmp_path / "cache")

    assert largest_drift(small.embed(crops), runtime.embed(crops)) < 1e-6
    runtime.close()
    assert "is compiled again" in caplog.text
    assert damaged.read_bytes() != b"no plan"


def test_with_known_kernels_it_loads_within_seconds(
    cudnn: Any, graph: Path, cache: Path, small: Cudnn
) -> None:
    started = time.monotonic()
    cudnn.Cudnn(graph, max_batch_size=LARGEST, cache=cache).close()
    assert time.monotonic() - started < 6


def test_threads_can_share_it(small: Cudnn) -> None:
    batches = [faces.noise(1 + index % LARGEST, seed=index) for index in range(32)]
    expected = [small.embed(batch) for batch in batches]

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(small.embed, batches), expected, strict=True):
                np.testing.assert_array_equal(got, want)


def test_calls_that_run_while_it_is_closed_get_a_clear_error(cudnn: Any, graph: Path, cache: Path) -> None:
    runtime = cudnn.Cudnn(graph, max_batch_size=LARGEST, cache=cache)
    crops = faces.noise(LARGEST)
    expected = runtime.embed(crops)

    def embed_until_closed() -> None:
        while True:
            try:
                np.testing.assert_array_equal(runtime.embed(crops), expected)
            except ClientClosedError:
                return

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(embed_until_closed) for _ in range(4)]
        time.sleep(0.2)
        runtime.close()
        for future in running:
            future.result(timeout=20)
    runtime.close()  # a second time does nothing


def test_ten_thousand_calls_leak_nothing(small: Cudnn) -> None:
    crops = faces.noise(LARGEST)
    small.embed(crops)
    before = free_bytes()

    for call in range(10_000):
        small.embed(crops[: 1 + call % LARGEST])

    assert before - free_bytes() <= 2 * MIB


def test_loading_and_closing_leaks_nothing(cudnn: Any, graph: Path, cache: Path, small: Cudnn) -> None:
    def cycle() -> int:
        runtime = cudnn.Cudnn(graph, max_batch_size=LARGEST, cache=cache)
        runtime.embed(faces.noise(3))
        runtime.close()
        return free_bytes()

    for _ in range(3):
        before = cycle()
    for _ in range(10):
        after = cycle()
    assert before - after <= 16 * MIB


def test_without_memory_for_a_large_batch_a_smaller_one_is_taken(
    cudnn: Any,
    graph: Path,
    cache: Path,
    small: Cudnn,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from arcface_client.runtimes.cuda import DeviceBuffer
    from arcface_client.runtimes.cudnn import loaded

    is_full = iter([False, True])  # the weights, then the feature maps of 16 crops, then of 8

    class FullAtFirst(DeviceBuffer):
        def __init__(self, nbytes: int) -> None:
            if next(is_full, False):
                raise CudaError("CUDA says cudaErrorMemoryAllocation: out of memory")
            super().__init__(nbytes)

    monkeypatch.setattr(loaded, "DeviceBuffer", FullAtFirst)
    runtime = cudnn.Cudnn(graph, max_batch_size=16, cache=cache)

    assert runtime.max_batch_size == 8
    crops = faces.noise(8)
    assert largest_drift(exact(graph, crops), runtime.embed(crops)) < 1e-5
    runtime.close()
    assert "No GPU memory for batches of 16, so 8 is tried" in caplog.text


def test_a_missing_gpu_is_a_clear_error(cudnn: Any, graph: Path, cache: Path) -> None:
    with pytest.raises(CudaError, match="There is no GPU 99: CUDA sees "):
        cudnn.Cudnn(graph, device=99, cache=cache)


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Path]:
    """A repository with ``r18_onnx`` and ``r18_cudnn``."""
    repository = tmp_path_factory.mktemp("r18")
    build(Synthetic("r18"), name="r18", repository=repository)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCFACE_CACHE_DIR", str(cache))
        place = ["--name", "r18", "--repository", str(repository)]
        assert main(["compile", *place, "--runtime", "cudnn"]) == 0
        yield repository


def test_the_sibling_embeds_as_the_source_does(r18: Path) -> None:
    crops = faces.face_like(64, seed=77)
    settings: dict[str, Any] = {"embedding_model": "r18", "embedding_model_repository": r18}
    with get_embedding_backend("cudnn", "cuda:0", **settings, allow_cpu_fallback=False) as embedder:
        embeddings, served = embedder.encode(crops, return_source=True)
        diagnostics = embedder.diagnostics()
    sibling = OnnxRuntime(r18 / "r18_onnx/1/model.onnx")

    assert largest_drift(in_batches(sibling.embed, crops, 8), embeddings) < 2e-4
    assert [source.backend for source in served.sources] == ["cudnn"]
    assert (diagnostics.precision, diagnostics.batch_size) == ("fp16", 256)
    assert diagnostics.validation.regression_test == "passed"


def test_hundreds_of_batches_give_the_same_embeddings(cudnn: Any, r18: Path, cache: Path) -> None:
    """Kernels overlap: one that reads what another has not written yet does so once in a hundred batches."""
    crops = faces.noise(64)
    runtime = cudnn.Cudnn(r18 / "r18_onnx/1/model.onnx", max_batch_size=64, cache=cache)

    for count in (8, 16, 32, 64):
        expected = runtime.embed(crops[:count])
        assert all(np.array_equal(runtime.embed(crops[:count]), expected) for _ in range(500))
    runtime.close()


def test_triton_serves_it_first_and_right(r18: Path) -> None:
    crops = faces.face_like(32, seed=6)
    with LocalTriton(r18) as server:
        with EmbeddingClient(server.grpc_url, "r18_onnx") as sibling:
            expected = sibling.encode(crops)
        with EmbeddingClient(server.grpc_url, "r18_cudnn") as client, ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _: client.encode(crops), range(40)):
                assert largest_drift(expected, got) < 2e-4
        with get_embedding_backend(
            "triton", triton_url=server.grpc_url, embedding_model="r18", embedding_model_repository=r18
        ) as embedder:
            _, served = embedder.encode(golden_crops(), return_source=True)

    assert [source.model for source in served.sources] == ["r18_cudnn"]
    assert served.refusals == ()
