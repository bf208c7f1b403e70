"""TensorRT 11's path, with the real parser, network and builder of TensorRT-RTX."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from arcface_builder.errors import CompileError, WorkspaceError
from arcface_builder.graph.precision import typed_graph
from arcface_builder.trt import compat, engine, progress
from arcface_builder.trt.engine import build_plan
from arcface_builder.trt.options import BuildOptions
from support.processes import wait_until


@pytest.fixture(scope="module")
def typed(half_graph: bytes) -> dict[str, bytes]:
    return {precision: typed_graph(half_graph, precision) for precision in ("fp32", "fp16")}


@pytest.mark.parametrize(("precision", "sm"), [("fp32", "86"), ("fp16", "89"), ("fp16", "120")])
def test_a_plan_is_built_for_another_architecture_without_a_gpu(
    precision: str, sm: str, trt: ModuleType, typed: dict[str, bytes]
) -> None:
    built = build_plan(trt, typed[precision], BuildOptions(precision=precision), target_sm=sm)

    assert built.plan[1:4] == b"trt"
    assert 0.9 < len(built.plan) / len(typed[precision]) < 1.3  # the weights, in their precision
    assert built.workspace_size_mb == 1024


@pytest.mark.parametrize(
    ("largest", "tuned", "profiles"),
    [
        (256, None, [(1, 256, 256), (1, 1, 4), (1, 16, 32)]),
        (32, None, [(1, 32, 32), (1, 1, 4), (1, 8, 16)]),
        (256, 32, [(1, 32, 256), (1, 1, 4), (1, 8, 16)]),
        (16, None, [(1, 16, 16), (1, 1, 4)]),
        (2, None, [(1, 2, 2), (1, 1, 2)]),
        (1, None, [(1, 1, 1)]),
    ],
)
def test_kernels_are_tuned_for_one_crop_for_the_largest_batch_and_for_what_is_between(
    largest: int, tuned: int | None, profiles: list[tuple[int, ...]]
) -> None:
    options = BuildOptions(max_batch_size=largest, opt_batch_size=tuned)

    assert list(options.profiles) == profiles
    assert replace(options, small_batch_profile=False).profiles == options.profiles[:1]


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("fp16", False), ("tf32", True)])
def test_tf32_is_on_for_tf32_alone(precision: str, on: bool, trt: ModuleType) -> None:
    config = trt.Builder(compat.logger(trt, compat.Messages())).create_builder_config()

    compat.set_precision(trt, config, precision)

    assert config.get_flag(trt.BuilderFlag.TF32) is on


def test_a_plan_that_would_fit_one_gpu_model_only_is_refused_before_it_is_built(
    trt: ModuleType, small_graph: bytes
) -> None:
    told: list[str] = []
    options = BuildOptions(precision="fp32", hardware_compatible=True)

    # TensorRT-RTX has the API, and only warns.
    with pytest.raises(CompileError, match=r"^tensorrt_rtx .* set tensorrt\.hardware_compatible to false"):
        build_plan(trt, small_graph, options, report=lambda stage, done: told.append(stage))

    assert told == []


def test_an_operator_that_the_parser_does_not_know_is_named(trt: ModuleType, small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    model.graph.node[4].op_type = "Unheard"
    name = model.graph.node[4].name

    with pytest.raises(CompileError) as caught:
        build_plan(trt, model.SerializeToString(), BuildOptions(), target_sm="86")

    assert f"cannot parse the graph at the Unheard node {name!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_of_the_builder_is_its_first_error(trt: ModuleType, small_graph: bytes) -> None:
    model = onnx.load_model_from_string(small_graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4  # the profile starts at 1

    with pytest.raises(CompileError, match=r"TensorRT [\d.]+ cannot build the plan: .*profile"):
        build_plan(trt, model.SerializeToString(), BuildOptions(), target_sm="86")


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("[virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (no further info)", True),
        ("[resources.cpp::alloc::90] Error Code 1: Cuda Runtime (out of memory)", True),
        (
            "[a.cpp::f::1] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)",
            False,
        ),
        ("[optimizer.cpp::f::1] Error Code 10: Internal Error (no implementation for node fc)", False),
    ],
)
def test_the_name_of_an_error_says_whether_it_is_one_of_memory(text: str, is_memory: bool) -> None:
    messages = compat.Messages()

    messages.fail(text)

    assert messages.ran_out_of_memory is is_memory


def without_memory_above(limit_mb: int, attempt: Any) -> Any:
    """The real build, but out of memory above a workspace size: no test can fill a GPU."""

    def limited(*arguments: Any) -> Any:
        workspace_mb, messages = arguments[3:5]
        if workspace_mb <= limit_mb:
            return attempt(*arguments)
        messages.fail("[x] Error Code 2: OutOfMemory (no further information)")
        return None

    return limited


def test_out_of_memory_halves_the_workspace_with_a_warning(
    trt: ModuleType, small_graph: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "_attempt", without_memory_above(300, engine._attempt))

    with caplog.at_level(logging.WARNING):
        built = build_plan(
            trt, small_graph, BuildOptions(precision="fp32", workspace_size_mb=1000), target_sm="86"
        )

    assert built.workspace_size_mb == 256
    assert [record.args for record in caplog.records] == [(1000, 500), (500, 256)]


def test_out_of_memory_at_the_least_workspace_names_the_setting(
    trt: ModuleType, small_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_attempt", without_memory_above(0, engine._attempt))

    with pytest.raises(WorkspaceError, match=r"256 MB.*tensorrt\.workspace_size_mb was 512"):
        build_plan(trt, small_graph, BuildOptions(workspace_size_mb=512), target_sm="86")


def test_a_build_that_fails_without_a_reason_on_a_full_gpu_is_out_of_memory(
    trt: ModuleType, small_graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fail(*arguments: Any) -> None:
        attempts.append(arguments[3])
        arguments[4].fail("[x] Error Code 2: Internal Error (no further information)")

    monkeypatch.setattr(engine, "_attempt", fail)

    def build(free_mb: int) -> None:
        build_plan(trt, small_graph, BuildOptions(), target_sm="86", free_mb=lambda: free_mb)

    with pytest.raises(WorkspaceError, match="The GPU has 31 MB of memory free"):
        build(31)
    assert attempts == [1024, 512, 256]
    with pytest.raises(CompileError, match=r"no further information\. The GPU has 4000 MB of memory free"):
        build(4000)


def test_progress_has_stages_and_the_share_that_is_done(
    trt: ModuleType, typed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    told: list[tuple[str, float | None]] = []

    build_plan(
        trt,
        typed["fp32"],
        BuildOptions(precision="fp32"),
        target_sm="86",
        report=lambda stage, done: told.append((stage, done)),
    )

    assert all(done is not None and 0 <= done <= 1 for _, done in told)
    assert len({done for _, done in told if done}) > 1
    assert {stage for stage, _ in told} > {"TensorRT"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_ctrl_c_or_a_display_that_fails_cancels_the_build(
    error: type[BaseException],
    trt: ModuleType,
    typed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    goes_on: list[bool] = []

    def watched(*arguments: Any) -> Any:
        made: Any = progress.monitor(*arguments)
        answer = type(made).step_complete

        def step_complete(self: Any, name: str, step: int) -> bool:
            goes_on.append(answer(self, name, step))
            return goes_on[-1]

        monkeypatch.setattr(type(made), "step_complete", step_complete)
        return made

    def interrupt(stage: str, done: float | None) -> None:
        if done:
            raise error

    monkeypatch.setattr(engine, "monitor", watched)
    with pytest.raises(error):
        build_plan(trt, typed["fp32"], BuildOptions(precision="fp32"), target_sm="86", report=interrupt)

    wait_until(lambda: "tensorrt-build" not in [thread.name for thread in threading.enumerate()])
    assert goes_on[0]
    assert not goes_on[-1]


def test_measurements_of_kernels_are_kept_for_the_next_build(
    trt: ModuleType, small_graph: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "timing/of this GPU.cache"
    options = BuildOptions(precision="fp32", timing_cache=path)

    states = [build_plan(trt, small_graph, options, target_sm="86").timing_cache for _ in range(2)]

    assert states == ["cold", "warm"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_timing_cache_that_cannot_be_read_or_written_does_not_cost_the_plan(
    trt: ModuleType, small_graph: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    options = BuildOptions(precision="fp32", timing_cache=tmp_path / "file/timing.cache")

    assert build_plan(trt, small_graph, options, target_sm="86").plan

    (warning,) = caplog.messages
    assert warning.startswith(f"Cannot write the timing cache {tmp_path}/file/timing.cache (")
