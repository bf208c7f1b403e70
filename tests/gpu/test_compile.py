"""Plans that a real TensorRT builds on a real GPU: which pass the accuracy check, and which do not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from arcface_builder.compile import compile_plan
from arcface_builder.errors import CompileError, ParityError
from arcface_builder.graph.edit import constant, set_constant
from arcface_builder.repository.plans import AddedPlan
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_builder.store.local import LocalStore
from arcface_builder.store.plan_store import PlanStore
from arcface_builder.trt.gpu import Gpu
from arcface_builder.trt.options import BuildOptions
from arcface_client.cli.terminal import FAILED
from arcface_client.models.repository import LocalOnnx
from support.exports import small_arcface
from support.gpu_models import Model, build_seconds, publish
from support.networks import NETWORKS, ONE_CROP

COMMAND = "import sys; from arcface_builder.__main__ import main; sys.exit(main())"

ON_A_FULL_GPU = f"""
from cuda.bindings import runtime as cudart
from arcface_client.runtimes.cuda import check
free, _ = check(cudart.cudaMemGetInfo())
check(cudart.cudaMalloc(free - (32 << 20)))
{COMMAND}
"""


def test_a_plan_in_fp16_gives_the_source_models_embeddings(r18_plan: AddedPlan, gpu: Gpu) -> None:
    manifest = r18_plan.manifest

    assert not r18_plan.from_store
    assert r18_plan.path.name == f"r18-fp16-sm{gpu.sm}.plan"
    assert manifest.parity.largest_drift_cosine < 2e-4
    assert manifest.parity.compared_with == "source file"
    assert manifest.parity.details["between_batches"] < 2e-4
    assert min(manifest.parity.details["controls"].values()) > manifest.parity.max_drift_cosine
    assert manifest.precisions_used.get("fp16", 0) >= 21
    assert manifest.identity.tensorrt_version == gpu.trt.__version__
    assert manifest.gpu_name == gpu.name


def test_a_plan_in_fp32_is_exact(small_plan: AddedPlan) -> None:
    assert small_plan.manifest.parity.largest_drift_cosine < 1e-6
    assert set(small_plan.manifest.precisions_used) == {"fp32"}


@pytest.mark.parametrize(
    ("network", "max_batch_size"),
    [(NETWORKS["opset 20"], 8), (NETWORKS["192 numbers, channels last"], 8), (ONE_CROP, 1)],
    ids=["opset 20", "192 numbers", "one crop at a time"],
)
def test_a_network_that_is_no_iresnet_gets_a_plan_that_is_exact_or_is_told_that_tensorrt_cannot(
    network: onnx.ModelProto, max_batch_size: int, gpu: Gpu, tmp_path: Path
) -> None:
    onnx.save_model(network, tmp_path / "source.onnx")
    model = publish(OnnxFile(tmp_path / "source.onnx"), "net", tmp_path / "models")
    options = BuildOptions(precision="fp32", max_batch_size=max_batch_size)

    store = PlanStore(LocalStore(tmp_path / "cache"))

    try:
        added = compile_plan(model.request(options), gpu, store, model.repository)
    except CompileError as error:
        # TensorRT 8.5 has no implementation for some fused parts of transformers.
        assert gpu.trt.__version__.startswith("8.5"), error
        assert "cannot build the plan" in str(error)
        return

    assert added.manifest.parity.largest_drift_cosine < 1e-6


def test_the_second_time_the_plan_comes_from_the_store(
    r18: Model, r18_options: BuildOptions, r18_plan: AddedPlan, gpu: Gpu, store: PlanStore, tmp_path: Path
) -> None:
    again = compile_plan(r18.request(r18_options), gpu, store, ModelRepository(tmp_path / "models"))

    assert again.from_store
    assert again.manifest == r18_plan.manifest
    assert again.path.read_bytes() == r18_plan.path.read_bytes()


def test_a_warm_timing_cache_makes_the_build_quick(
    r18: Model, r18_options: BuildOptions, r18_plan: AddedPlan, gpu: Gpu, tmp_path: Path
) -> None:
    empty = PlanStore(LocalStore(tmp_path / "cache"))

    again = compile_plan(r18.request(r18_options), gpu, empty, ModelRepository(tmp_path / "models"))

    assert not again.from_store
    assert again.manifest.timing_cache == "warm"
    assert build_seconds(again) < build_seconds(r18_plan) / 2


def swapped(content: bytes) -> bytes:
    """A serving graph with red and blue swapped."""
    model = ir.from_proto(onnx.load_model_from_string(content))
    convolution = next(node for node in model.graph if node.op_type == "Conv")
    weight = constant(convolution.inputs[1])
    assert weight is not None
    set_constant(convolution, 1, np.ascontiguousarray(weight[:, ::-1]), "swapped")
    return bytes(ir.to_proto(model).SerializeToString())


@pytest.mark.parametrize("wrong", ["swapped channels", "another ONNX's plan"])
def test_a_plan_with_other_embeddings_is_refused_and_nothing_is_stored(
    wrong: str,
    small: Model,
    small_options: BuildOptions,
    small_plan: AddedPlan,
    gpu: Gpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if wrong == "swapped channels":
        content = swapped(small.onnx.content())
    else:
        onnx.save_model(small_arcface(seed=1), tmp_path / "other.onnx")
        content = publish(OnnxFile(tmp_path / "other.onnx"), "other", tmp_path).onnx.content()
    # What is built is not what the repository serves.
    monkeypatch.setattr(LocalOnnx, "content", lambda onnx: content)
    request = small.request(small_options)
    cache, models = tmp_path / "cache", tmp_path / "models"

    with pytest.raises(ParityError, match=r"The plan drifts by .*Nothing was stored"):
        compile_plan(request, gpu, PlanStore(LocalStore(cache)), ModelRepository(models))

    assert [*cache.rglob("*.plan"), *models.rglob("*.plan")] == []


def test_a_corrupted_plan_in_the_store_is_built_again(
    small: Model, small_options: BuildOptions, small_plan: AddedPlan, gpu: Gpu, tmp_path: Path
) -> None:
    store = PlanStore(LocalStore(tmp_path / "cache"))
    request = small.request(small_options)
    compile_plan(request, gpu, store, ModelRepository(tmp_path / "first"))
    (plan,) = (tmp_path / "cache").rglob("*.plan")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)

    again = compile_plan(request, gpu, store, ModelRepository(tmp_path / "second"))

    assert not again.from_store
    assert again.manifest.parity.largest_drift_cosine < 1e-6


def test_ctrl_c_during_a_build_leaves_nothing(r18: Model, gpu: Gpu, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish(r18.source, "r18", repository)
    before = sorted(repository.rglob("*"))
    cache = tmp_path / "cache"
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "compile", "--name", "r18", "--repository", str(repository)],
        env={**os.environ, "ARCFACE_CACHE_DIR": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    line = child.stderr.readline()
    while not re.match("r18: (?!Writing|Comparing)", line):  # a stage of TensorRT's own
        assert line, f"ended with {child.wait()}"
        line = child.stderr.readline()

    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = child.communicate(timeout=60)

    assert time.monotonic() - started < 30
    assert "Traceback" not in said
    assert child.returncode in (130, -signal.SIGINT), said
    assert sorted(repository.rglob("*")) == before
    assert [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


def test_a_full_gpu_is_an_error_of_one_line_and_leaves_nothing(
    small: Model, gpu: Gpu, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    publish(small.source, "small", repository)
    before = sorted(repository.rglob("*"))

    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_GPU, "compile", "--name", "small", "--repository", str(repository)],
        env={**os.environ, "ARCFACE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == FAILED, done.stderr
    assert "memory" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(repository.rglob("*")) == before
    assert [*(tmp_path / "cache").rglob("*.plan")] == []
