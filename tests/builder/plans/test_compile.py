from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnx
import pytest

from arcface_builder import faces
from arcface_builder.build import build
from arcface_builder.cli import main
from arcface_builder.commands.sources import source_of
from arcface_builder.compile import Compiled, Request, compile_plan
from arcface_builder.errors import (
    BlindGateError,
    CompileError,
    OptionError,
    ParityError,
    PrecisionError,
    RepositoryError,
)
from arcface_builder.fleet import assemble
from arcface_builder.graph import session
from arcface_builder.onnx_version import find_onnx
from arcface_builder.plans.builder import BuildOptions
from arcface_builder.plans.gate import another_model
from arcface_builder.plans.gpu import Gpu, LoadedPlan
from arcface_builder.plans.inspection import LayerPrecisions
from arcface_builder.repository import ModelRepository
from arcface_builder.sources import OnnxFile
from arcface_builder.store import EngineStore, LocalStore
from arcface_client.contract import INPUT_NAME, Crops, Embeddings
from exports import small_arcface


@dataclass(frozen=True)
class AbsentGpu(Gpu):
    """A GPU that is not there: TensorRT-RTX builds for it, and ONNX Runtime runs in place of it."""

    graph: bytes = b""
    runs_in: str = "fp16"
    wrong_below: int = 0  # plans of so few bytes embed as another model does

    def inspect(self, plan: bytes) -> tuple[LayerPrecisions, ...]:
        return (LayerPrecisions({self.runs_in: 2}, {self.runs_in: 2}),)

    @contextmanager
    def load(self, path: Path) -> Iterator[LoadedPlan]:
        wrong = path.stat().st_size < self.wrong_below
        yield OnnxInstead(another_model(self.graph) if wrong else self.graph)


class OnnxInstead:
    max_batch_size = 32

    def __init__(self, graph: bytes) -> None:
        self._session = session(graph)

    def embed(self, crops: Crops) -> Embeddings:
        return self._session.run(None, {INPUT_NAME: crops})[0]  # type: ignore[no-any-return]

    def close(self) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    onnx.save_model(small_arcface(), path)
    return path


@pytest.fixture
def repository(source: Path, tmp_path: Path) -> ModelRepository:
    build(OnnxFile(source), name="small", repository=tmp_path / "models")
    return ModelRepository(tmp_path / "models")


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(LocalStore(tmp_path / "cache"))


@pytest.fixture
def gpu(trt: ModuleType, repository: ModelRepository) -> AbsentGpu:
    graph = find_onnx(repository, "small").content
    return AbsentGpu(trt, sm="86", name="absent", driver_version="13.0", target_sm="86", graph=graph)


@pytest.fixture
def request_(repository: ModelRepository, source: Path) -> Request:
    manifest = json.loads(repository.manifest_path("small_onnx", 1).read_text())
    return Request(
        onnx=find_onnx(repository, "small"),
        options=BuildOptions(),
        calibration=faces.noise(256),
        source=OnnxFile(source),
        source_sha256=manifest["source"]["sha256"],
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_plan_is_built_proved_stored_and_put_into_the_repository(
    request_: Request, gpu: Gpu, store: EngineStore, repository: ModelRepository
) -> None:
    stages: set[str] = set()

    compiled = compile_plan(request_, gpu, store, repository, report=lambda stage, done: stages.add(stage))

    assert compiled.added.path == repository.root / "small_trt/1/small-fp16-sm86.plan"
    assert not compiled.from_store
    manifest = compiled.manifest
    assert manifest.precisions_used == {"fp16": 2}
    assert manifest.parity.max_drift_cosine < 1e-5
    assert manifest.parity.crops == 256
    assert manifest.parity.details["source"] == "source file"
    assert manifest.parity.details["controls"]["another model"] > 0.001
    assert manifest.identity.tensorrt_version == gpu.trt.__version__
    assert {"Writing fp16 into the graph", "Comparing the plan with its source"} <= stages


def test_the_second_time_the_plan_comes_from_the_store(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    first = compile_plan(request_, gpu, store, repository)

    second = compile_plan(request_, gpu, store, ModelRepository(repository.root.parent / "other"))

    assert second.from_store
    assert second.manifest == first.manifest


def test_a_plan_that_is_refused_is_not_stored_and_the_report_says_where(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    wrong = replace(gpu, wrong_below=1 << 30)

    with pytest.raises(
        ParityError, match=r"The plan drifts .* Nothing was stored\. In fp16, its graph is sound"
    ):
        compile_plan(request_, wrong, store, repository)

    assert [name for name in files(repository.root) if "trt" in name or "plan" in name] == []
    assert [name for name in files(store.local.root) if ".plan" in name] == []


def test_a_plan_that_runs_in_another_precision_is_refused(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    with pytest.raises(
        PrecisionError, match="The plan named fp16 runs its convolutions otherwise: 2 in fp32"
    ):
        compile_plan(request_, replace(gpu, runs_in="fp32"), store, repository)


def test_the_next_more_exact_precision_is_built_where_one_is_refused(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    # An fp32 plan is twice as large as an fp16 one, and the absent GPU runs everything in fp32.
    compiled = compile_plan(replace(request_, fallback=True), replace(gpu, runs_in="fp32"), store, repository)

    assert compiled.manifest.identity.precision == "tf32"
    assert compiled.added.path.name == "small-tf32-sm86.plan"
    assert compiled.manifest.notes[0].startswith("fp16 was refused: The plan named fp16 runs")


def test_a_blind_gate_does_not_fall_back(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    alike = np.zeros((256, 112, 112, 3), np.uint8)  # one face, 256 times

    with pytest.raises(BlindGateError, match="The gate is blind"):
        compile_plan(replace(request_, calibration=alike, fallback=True), gpu, store, repository)


def test_without_the_source_model_two_points_are_compared(
    request_: Request,
    gpu: AbsentGpu,
    store: EngineStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = replace(request_, source=OnnxFile(Path("gone.onnx")))

    with caplog.at_level(logging.WARNING):
        compiled: Compiled = compile_plan(missing, gpu, store, repository)

    assert compiled.manifest.parity.details["source"] == "served ONNX model"
    assert "The source model is not at hand" in caplog.text


def test_another_file_than_the_source_is_not_compared_with(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository, tmp_path: Path
) -> None:
    onnx.save_model(small_arcface(seed=1), tmp_path / "source.onnx")

    compiled = compile_plan(request_, gpu, store, repository)

    assert compiled.manifest.parity.details["source"] == "served ONNX model"


def test_int8_without_crops_is_refused_before_anything_is_built(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    bare = replace(request_, options=BuildOptions(precision="int8"), calibration=None)

    with pytest.raises(OptionError, match="int8 needs face crops"):
        compile_plan(bare, gpu, store, repository)


def test_other_calibration_crops_make_another_int8_plan(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    int8 = replace(request_, options=BuildOptions(precision="int8"), allowed_drift_cosine=0.05)
    ready = replace(gpu, runs_in="int8")
    first = compile_plan(int8, ready, store, repository)

    other = replace(int8, calibration=faces.noise(256, seed=9))
    second = compile_plan(other, ready, store, ModelRepository(repository.root.parent / "other"))

    assert not second.from_store
    assert first.manifest.identity.digest != second.manifest.identity.digest


def test_a_stored_plan_that_passed_a_more_lenient_gate_is_refused(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    compile_plan(request_, gpu, store, repository)

    with pytest.raises(ParityError, match=r"The stored small-fp16-sm86\.plan drifts by"):
        compile_plan(replace(request_, allowed_drift_cosine=0.0), gpu, store, repository)


def test_a_fleet_is_assembled_from_the_store_without_a_gpu(
    request_: Request, gpu: AbsentGpu, store: EngineStore, repository: ModelRepository
) -> None:
    for sm in ("86", "89"):
        compile_plan(
            request_, replace(gpu, sm=sm, target_sm=sm), store, ModelRepository(store.local.root / sm)
        )

    added = assemble(request_.onnx, request_.options, ["8.6", "8.9"], store, repository)

    assert [plan.path.name for plan in added] == ["small-fp16-sm86.plan", "small-fp16-sm89.plan"]
    with pytest.raises(CompileError, match=r"by TensorRT .* at best, without sm90; run"):
        assemble(request_.onnx, request_.options, ["8.6", "9.0"], store, repository)
    with pytest.raises(CompileError, match="The store has no fp16 plans of small version 1, batch 64"):
        assemble(request_.onnx, BuildOptions(max_batch_size=64), ["8.6"], store, repository)
    with pytest.raises(CompileError, match=r"The store has no .* by TensorRT 8\.5"):
        assemble(request_.onnx, request_.options, ["8.6"], store, repository, tensorrt_version="8.5.3.1")


def test_a_manifest_leads_back_to_the_source(repository: ModelRepository, source: Path) -> None:
    manifest = json.loads(repository.manifest_path("small_onnx", 1).read_text())

    assert source_of(manifest["rebuild_command"]) == OnnxFile(source)


def test_a_model_or_version_that_is_not_there_is_named(repository: ModelRepository) -> None:
    with pytest.raises(RepositoryError, match="has no other_onnx; run `arcface-builder build` first"):
        find_onnx(repository, "other")
    with pytest.raises(RepositoryError, match="has no version 7 of small_onnx; it has 1"):
        find_onnx(repository, "small", 7)


def arguments(repository: ModelRepository, *more: str) -> list[str]:
    return ["compile", "--name", "small", "--repository", str(repository.root), *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--opt-batch-size", "64"], "opt_batch_size is 64; expected 1 to max_batch_size, 32"),
        (["--max-batch-size", "0"], "max_batch_size is 0; expected 1 to 1024"),
        (["--workspace-size-mb", "1"], "workspace_size_mb is 1; expected 256 or more"),
        (["--name", "other"], "has no other_onnx"),
        (["--cc", "8,6", "--from-store"], "Compute capability '8' cannot be that of a plan"),
        (["--cc", "8.6", "--from-store"], "The store has no fp16 plans of small version 1"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str],
    message: str,
    repository: ModelRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))

    assert main(arguments(repository, *more)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("arcface-builder: ")
    assert message in last
    assert not (repository.root / "small_trt").exists()


def test_a_machine_without_tensorrt_or_gpu_says_what_is_missing(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(arguments(repository))

    last = capsys.readouterr().err.splitlines()[-1]
    if status == 0:
        pytest.skip("this machine has both")
    assert "TensorRT cannot be imported" in last or "GPU" in last


@pytest.mark.parametrize(
    "wrong",
    [["--precision", "fp8"], ["--cc", "8.6"], ["--from-store"]],
    ids=["precision", "cc", "from store"],
)
def test_wrong_usage_ends_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["compile", "--name", "small", *wrong])

    assert exit_.value.code == 2


def test_switched_off_it_does_nothing(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_TENSORRT_ENABLED", "false")

    assert main(arguments(repository)) == 0

    assert "TensorRT is switched off" in capsys.readouterr().err


def test_a_folder_without_images_is_refused(
    repository: ModelRepository,
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("arcface_builder.commands.compile.gpu_at_hand", lambda: gpu)
    (tmp_path / "crops").mkdir()

    assert main(arguments(repository, "--calibration-dir", str(tmp_path / "crops"))) == 1

    assert "has no images; --calibration-dir expects 112x112 face crops" in capsys.readouterr().err


def test_the_command_compiles_with_a_folder_of_crops_and_tells_it_as_json(
    repository: ModelRepository,
    gpu: AbsentGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("arcface_builder.commands.compile.gpu_at_hand", lambda: gpu)
    monkeypatch.setenv("ARCFACE_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "crops"
    folder.mkdir()
    for index, crop in enumerate(faces.noise(256)):
        cv2.imwrite(str(folder / f"{index}.png"), crop)
    command = arguments(repository, "--calibration-dir", str(folder))

    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plans"][0]["path"].endswith("small_trt/1/small-fp16-sm86.plan")
    assert told["manifest"]["parity"]["details"]["source"] == "source file"
    assert "--max-batch-size 32" in told["manifest"]["build_command"]

    assert main(command) == 0
    assert capsys.readouterr().out.startswith("small-fp16-sm86.plan already in small_trt version 1\n")
