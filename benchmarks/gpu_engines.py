"""cuDNN, TensorRT and ONNX Runtime, each alone in this process; and a plan through a real Triton."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.compile import PlanRequest, compile_plan
from arcface_builder.repository.plans import AddedPlan
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.source.load import Synthetic
from arcface_builder.store.local import LocalStore
from arcface_builder.store.plan_store import PlanStore
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BuildOptions
from arcface_client.errors import ModelNotFoundError
from arcface_client.evaluation.benchmark_worker import Worker
from arcface_client.evaluation.samples import generated_samples
from arcface_client.models.golden import largest_drift
from arcface_client.models.repository import LocalOnnx
from arcface_client.runtimes.base import in_batches
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_client.settings import load_pipeline_settings
from arcface_server import LocalTriton
from arcface_server.perf.binary import find_perf_analyzer
from arcface_server.perf.measurement import CROP_COUNT, Load, SharedMemory, measure, write_input_data
from gpu_report import Figure

if TYPE_CHECKING:
    from arcface_client.runtimes.cudnn.runtime import Cudnn
    from arcface_client.runtimes.tensorrt import TensorRt

_SECONDS: Final = 1.0
_LEAST_CALLS: Final = 3
_CLIENT_CROPS: Final = 16_384
_CLIENT_CALLS: Final = 5
_SHARED: Final[tuple[SharedMemory, ...]] = ("none", "system")
_WARM_S: Final = 6.0  # to load with kernels that are known
_HELD_OUT: Final = 64  # crops that were not used for calibration

Call = Callable[[], object]


def serving_model(network: str, work: Path) -> LocalOnnx:
    """The ONNX model of a network, built unless an earlier run did."""
    name, folder = f"arcface_{network}", work / network
    try:
        return find_onnx(ModelRepository(folder), name)
    except ModelNotFoundError:
        build(Synthetic(network), name=name, repository=folder)
        return find_onnx(ModelRepository(folder), name)


def make_plan(
    onnx: LocalOnnx, options: BuildOptions, gpu: Gpu, work: Path, *, repository: Path, max_drift: float
) -> AddedPlan:
    """Build a plan, unless an earlier run did.

    Raises:
        BuilderError: The plan cannot be built, or its drift is above ``max_drift``.
    """
    calibration = faces.face_like(256, seed=9) if options.precision == "int8" else None
    request = PlanRequest(onnx=onnx, options=options, max_drift_cosine=max_drift, calibration=calibration)
    return compile_plan(request, gpu, PlanStore(LocalStore(work / "cache")), ModelRepository(repository))


def rebuild_s(onnx: LocalOnnx, options: BuildOptions, gpu: Gpu, *, max_drift: float) -> float:
    """Seconds of a second build of the plan, with the timing cache of the first."""
    with tempfile.TemporaryDirectory(prefix="arcface-bench-") as name:
        work = Path(name)
        again = make_plan(onnx, options, gpu, work, repository=work / "models", max_drift=max_drift)
    return _build(again)[0]


def _build(compiled: AddedPlan) -> tuple[float, str]:
    """How long a plan's build took, and with which timing cache."""
    manifest = compiled.manifest
    return manifest.build_seconds or 0.0, (manifest.timing_cache or "none").partition(":")[0]


def tensorrt(onnx: LocalOnnx, compiled: AddedPlan, batches: Sequence[int]) -> Iterator[Figure]:
    """Measure a plan."""
    from arcface_client.runtimes.cuda import free_bytes
    from arcface_client.runtimes.tensorrt import TensorRt

    manifest = compiled.manifest
    build_s, timing_cache = _build(compiled)
    crops = faces.face_like(max(batches), seed=3)
    free = free_bytes()
    with closing(TensorRt(compiled.path, sha256=manifest.plan_sha256)) as plan:
        drift = max(manifest.parity.largest_drift_cosine, _held_out_drift(onnx, plan))
        for batch in batches:
            p50_ms, p99_ms = latency_ms(lambda count=batch: plan.embed(crops[:count]))  # type: ignore[misc]
            repeats = max(5, round(_SECONDS * 1e3 / p50_ms))
            faces_per_s = batch / plan.back_to_back_s(crops[:batch], repeats)
            yield Figure(
                network=onnx.name.removeprefix("arcface_"),
                runtime=f"TensorRT {manifest.identity.tensorrt_version}",
                precision=manifest.identity.precision,
                tuned_for=manifest.identity.opt_batch_size,
                batch=batch,
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                faces_per_s=faces_per_s,
                device_mb=(free - free_bytes()) / 2**20,
                build_s=build_s,
                timing_cache=timing_cache,
                plan_mb=manifest.plan_bytes / 2**20,
                drift=drift,
            )


def cudnn(onnx: LocalOnnx, batches: Sequence[int]) -> Iterator[Figure]:
    """Measure cuDNN; kernels that the cache folder lacks are compiled and timed first."""
    from arcface_client.runtimes.cuda import device_count, free_bytes
    from arcface_client.runtimes.cudnn.runtime import Cudnn

    device_count()  # starts CUDA
    crops = faces.face_like(max(batches), seed=3)
    free, started = free_bytes(), time.perf_counter()
    with closing(Cudnn(onnx.path, max_batch_size=max(batches))) as runtime:
        build_s = time.perf_counter() - started
        drift = _held_out_drift(onnx, runtime)
        for batch in batches:
            p50_ms, p99_ms = latency_ms(lambda count=batch: runtime.embed(crops[:count]))  # type: ignore[misc]
            repeats = max(5, round(_SECONDS * 1e3 / p50_ms))
            yield Figure(
                network=onnx.name.removeprefix("arcface_"),
                runtime=f"cuDNN {runtime.version}",
                precision=runtime.precision,
                batch=batch,
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                faces_per_s=batch / runtime.back_to_back_s(crops[:batch], repeats),
                device_faces_per_s=batch / runtime.back_to_back_s(crops[:batch], repeats, copies=False),
                device_mb=(free - free_bytes()) / 2**20,
                build_s=build_s,
                timing_cache="warm" if build_s < _WARM_S else "cold",
                drift=drift,
            )


def cpu(onnx: LocalOnnx, batches: Sequence[int]) -> Iterator[Figure]:
    """Measure ONNX Runtime on the CPU."""
    with closing(OnnxRuntime(onnx.path)) as runtime:
        for batch in batches:
            crops = faces.face_like(batch, seed=3)
            p50_ms, p99_ms = latency_ms(lambda crops=crops: runtime.embed(crops))  # type: ignore[misc]
            yield Figure(
                network=onnx.name.removeprefix("arcface_"),
                runtime=f"ONNX Runtime {onnxruntime.__version__} CPU",
                precision="fp32",
                batch=batch,
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                faces_per_s=batch / p50_ms * 1e3,
            )


def latency_ms(call: Call) -> tuple[float, float]:
    """Median and 99th percentile of one call's time."""
    for _ in range(_LEAST_CALLS):
        call()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < _LEAST_CALLS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    p50, p99 = np.percentile(times, [50, 99])
    return float(p50) * 1e3, float(p99) * 1e3


def _held_out_drift(onnx: LocalOnnx, plan: TensorRt | Cudnn) -> float:
    crops = faces.face_like(_HELD_OUT, seed=77)
    with closing(OnnxRuntime(onnx.path)) as exact:
        expected = in_batches(exact.embed, crops, 8)
    return largest_drift(expected, in_batches(plan.embed, crops, min(_HELD_OUT, plan.max_batch_size)))


def served(
    repository: Path,
    onnx: LocalOnnx,
    precision: str,
    batches: Sequence[int],
    concurrencies: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Measure one model over gRPC, with crops inside the requests and in system shared memory.

    The client's rows have no batch size and no concurrency: it chooses them itself.
    """
    about = {"network": onnx.name.removeprefix("arcface_"), "precision": precision}
    perf_analyzer = find_perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="arcface-bench-") as scratch, LocalTriton(repository) as server:
        input_data = Path(scratch, "crops.json")
        write_input_data(generated_samples(CROP_COUNT).crops, input_data)
        for shared_memory in _SHARED:
            for batch in batches:
                load = Load(
                    url=server.grpc_url,
                    model=f"{onnx.name}_trt",
                    version=None,
                    input_data=input_data,
                    shared_memory=shared_memory,
                    requests=1600 // math.isqrt(batch),  # a second or two of them
                )
                for concurrency in concurrencies:
                    figure = measure(perf_analyzer, load, batch, concurrency)
                    where = {**about, "shared_memory": shared_memory}
                    yield {"caller": "perf_analyzer", **where, **dataclasses.asdict(figure)}
        settings = load_pipeline_settings(
            environment={},
            arguments={
                "triton.url": server.grpc_url,
                "embedding.model": onnx.name,
                "embedding.model_repository": onnx.path.parents[2],
                "embedding.allow_cpu_fallback": False,
            },
        )
        with closing(Worker("triton", settings)) as client:
            client.open()
            times = [client.turn(_CLIENT_CROPS, 0, 1).wall_s for _ in range(_CLIENT_CALLS)]
        yield {
            "caller": "one client process",
            **about,
            "shared_memory": "none",
            "batch_size": 0,
            "concurrency": 0,
            "faces_per_s": _CLIENT_CROPS / statistics.median(times),
            "p50_ms": None,
            "p99_ms": None,
            "settled": None,
        }
