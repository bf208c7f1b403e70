"""A plan in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from arcface_builder.check import crops as faces
from arcface_builder.repository.plans import AddedPlan
from arcface_client.errors import ClientClosedError, DeploymentError, InputError

if TYPE_CHECKING:
    from arcface_client.runtimes.tensorrt import TensorRt

MIB = 1 << 20


def load(plan: Path, sha256: str | None = None) -> TensorRt:
    from arcface_client.runtimes.tensorrt import TensorRt  # which only a machine with a GPU has to have

    return TensorRt(plan, sha256=sha256)


@pytest.fixture
def runtime(small_plan: AddedPlan) -> Iterator[TensorRt]:
    runtime = load(small_plan.path, small_plan.manifest.plan_sha256)
    yield runtime
    runtime.close()


def free_bytes() -> int:
    from arcface_client.runtimes import cuda

    return cuda.free_bytes()


def test_calls_that_run_while_the_plan_is_closed_get_a_clear_error(small_plan: AddedPlan) -> None:
    runtime = load(small_plan.path)
    crops = faces.noise(8)
    expected = runtime.embed(crops)

    is_running = threading.Event()

    def embed_until_closed() -> None:
        while True:
            try:
                np.testing.assert_array_equal(runtime.embed(crops), expected)
            except ClientClosedError:
                return
            is_running.set()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(embed_until_closed) for _ in range(4)]
        assert is_running.wait(20)
        runtime.close()
        for future in running:
            future.result()
    runtime.close()  # a second time does nothing


def test_a_batch_larger_than_the_plan_takes_is_refused(runtime: TensorRt) -> None:
    for count in (0, 9):
        with pytest.raises(InputError, match=f"The batch has {count} crops; the plan takes 1 to 8"):
            runtime.embed(np.zeros((count, 112, 112, 3), np.uint8))


def test_a_cuda_graph_gives_the_same_bits_as_a_run_without_one(r18_plan: AddedPlan) -> None:
    crops = faces.face_like(32, seed=4)
    plain, recorded = (load(r18_plan.path) for _ in range(2))
    for count in (1, 4, 7, 32):  # two in the profile for few crops, one in each of the others
        expected = plain.embed(crops[:count])  # each size comes twice here, so no graph is replayed
        for _ in range(3):  # the second run records, the third replays
            np.testing.assert_array_equal(recorded.embed(crops[:count]), expected)
        # A graph copies what is in the buffers now, not what was there when it was recorded.
        np.testing.assert_array_equal(recorded.embed(crops[::-1][:count]), plain.embed(crops[::-1][:count]))
    plain.close()
    recorded.close()


def test_a_call_leaves_the_threads_current_gpu_as_it_was(runtime: TensorRt) -> None:
    from cuda.bindings import driver

    def current() -> int:
        return int(driver.cuCtxGetCurrent()[1])

    def in_a_new_thread() -> tuple[int, int]:
        before = current()
        runtime.embed(faces.noise(2))
        return before, current()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_new_thread).result() == (0, 0)  # it had no GPU, and still has none
    free_bytes()  # starts CUDA in this thread
    before = current()
    runtime.embed(faces.noise(2))
    assert current() == before != 0


def test_batches_run_without_a_graph_if_none_can_be_recorded(
    runtime: TensorRt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cuda.bindings import runtime as cudart

    crops = faces.noise(5)
    expected = runtime.embed(crops)
    no_memory = cudart.cudaError_t.cudaErrorMemoryAllocation
    with monkeypatch.context() as full:
        full.setattr(cudart, "cudaGraphInstantiate", lambda graph, flags: (no_memory, None))
        np.testing.assert_array_equal(runtime.embed(crops), expected)

    for _ in range(2):
        np.testing.assert_array_equal(runtime.embed(crops), expected)
    (said,) = caplog.messages
    assert said.startswith("Batches of 5 run without a CUDA graph: CUDA says cudaErrorMemoryAllocation")


def test_ten_thousand_calls_leak_nothing(runtime: TensorRt) -> None:
    crops = faces.noise(8)
    for count in (*range(1, 9), *range(1, 9)):
        runtime.embed(crops[:count])  # every graph is recorded
    before = free_bytes()

    for call in range(10_000):
        runtime.embed(crops[: 1 + call % 8])

    assert before - free_bytes() <= 2 * MIB


def test_loading_and_closing_leaks_nothing(small_plan: AddedPlan) -> None:
    def cycle() -> int:
        runtime = load(small_plan.path)
        for _ in range(2):
            runtime.embed(faces.noise(3))
        runtime.close()
        return free_bytes()

    for _ in range(3):
        before = cycle()
    for _ in range(20):
        after = cycle()
    assert before - after <= 8 * MIB


def test_threads_can_share_a_plan(runtime: TensorRt) -> None:
    batches = [faces.noise(1 + index % 8, seed=index) for index in range(32)]
    expected = [runtime.embed(batch) for batch in batches]

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(runtime.embed, batches), expected, strict=True):
                np.testing.assert_array_equal(got, want)


def test_a_plan_that_was_changed_never_reaches_tensorrt(small_plan: AddedPlan, tmp_path: Path) -> None:
    content = bytearray(small_plan.path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.plan").write_bytes(content)

    with pytest.raises(DeploymentError, match="its manifest says"):
        load(tmp_path / "changed.plan", small_plan.manifest.plan_sha256)


def test_a_plan_cut_short_is_refused_with_tensorrts_reason(small_plan: AddedPlan, tmp_path: Path) -> None:
    (tmp_path / "short.plan").write_bytes(small_plan.path.read_bytes()[:1000])

    with pytest.raises(DeploymentError, match=r"TensorRT [\d.]+ cannot load .*short\.plan: (?!no reason)"):
        load(tmp_path / "short.plan")


def test_a_tensorrt_that_does_not_start_is_a_clear_error(
    small_plan: AddedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    def null(_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")  # as for a driver too old

    monkeypatch.setattr(tensorrt, "Runtime", null)
    with pytest.raises(DeploymentError, match=r"TensorRT [\d.]+ does not start: "):
        load(small_plan.path)
