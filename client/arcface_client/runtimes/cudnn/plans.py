"""The fastest kernel for each shape: compiled on all cores, timed once, kept in the cache folder.

cuDNN compiles a kernel for a fused graph when it is asked for one. Which of the ten or so that it suggests is
fastest depends on the GPU and the batch. cuDNN's Python package holds the interpreter's lock while it does,
so that processes have to do it, one for each core.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import cudnn
import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from ...errors import DeploymentError
from ..base import usable_cores
from ..cuda import check, free_bytes, recorded
from .fused import REFUSED, Fused, Shape, compiled_plans

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".plan"
_MOST_COMPILERS: Final = 16
_COMPILER_BYTES: Final = 1 << 30  # of GPU memory: CUDA's own for a process
_REPEATS: Final = 10
_LEAST_MS: Final = 0.2
_COMPARED_BYTES: Final = 2 << 20  # of what a kernel writes, which takes milliseconds to copy and compare
_TO_HOST: Final = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


class PlanCache:
    """The plans that were fastest, a file for each shape, in a folder for each GPU and version of cuDNN.

    Networks with layers of one shape share its plan.

    Args:
        folder: The cache folder.
        gpu: Name of the GPU.
        version: cuDNN's version.
    """

    def __init__(self, folder: Path, gpu: str, version: str) -> None:
        self.folder = folder / "cudnn" / f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}-cudnn-{version}"
        self._is_writable = True

    def get(self, shape: Shape) -> bytes | None:
        """The plan for a shape; None if there is none."""
        try:
            return self._path(shape).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("The kernel for %s is compiled again: %s", shape, error)
            return None

    def put(self, shape: Shape, plan: bytes) -> None:
        """Keep the plan for a shape."""
        if not self._is_writable:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(plan)
            Path(file.name).replace(self._path(shape))
        except OSError as error:
            self._is_writable = False
            _log.warning("Kernels are not kept for the next start: %s", error)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from compiling the same plans."""
        return locked(self.folder / ".lock")

    def _path(self, shape: Shape) -> Path:
        return self.folder / f"{shape}{_SUFFIX}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a file's lock, and hold it; other threads wait as other processes do."""
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log.debug("There is no lock: %s", error)
        yield


def compile_all(shapes: Sequence[Shape], device: int, folder: Path) -> None:
    """Compile the plans of many shapes with one process for each core, into ``{shape}.{number}.plan``.

    Raises:
        DeploymentError: A process failed; the message has its reason.
    """
    ordered = sorted(shapes, key=lambda shape: (shape.topology, shape.channels, shape.size))
    at_once = max(1, min(_MOST_COMPILERS, usable_cores(), free_bytes() // _COMPILER_BYTES - 1))
    each = -(-len(ordered) // at_once)
    shares = [ordered[start : start + each] for start in range(0, len(ordered), each)]
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda share: _compile_in_process(share, device, folder), shares):
            pass


def _compile_in_process(shapes: list[Shape], device: int, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(device), str(folder)],
        input=json.dumps([asdict(shape) for shape in shapes]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DeploymentError(f"cuDNN cannot compile {shapes[0]} and the like: {reason}")


def fastest(
    shape: Shape,
    folder: Path,
    handle: Any,
    addresses: Mapping[str, int],
    workspace: Callable[[int], int],
    stream: Any,
) -> bytes:
    """Time the plans that were compiled for a shape, and check what the fastest one computes.

    Args:
        shape: The shape.
        folder: What ``compile_all`` filled.
        handle: A cuDNN handle.
        addresses: Of the tensors of one layer of this shape.
        workspace: Gives the address of a workspace of so many bytes.
        stream: The handle's stream.

    Returns:
        The fastest one that computes what cuDNN's first suggestion does.

    Raises:
        DeploymentError: None of them runs.
    """
    timed: list[tuple[float, str, Fused]] = []
    for path in sorted(folder.glob(f"{shape}.*{_SUFFIX}")):
        try:
            fused = Fused(path.read_bytes(), handle)
            run = partial(fused.run, addresses, workspace(fused.workspace_bytes))
            timed.append((milliseconds(run, stream), path.name, fused))
        except (*REFUSED, DeploymentError):  # it cannot run or be recorded here; others can
            continue
    if not timed:
        raise DeploymentError(f"cuDNN has no kernel for {shape} on this GPU.")
    outputs = _outputs(shape, addresses)

    def computed(fused: Fused) -> list[npt.NDArray[Any]]:
        for output in outputs:
            output.clear(stream)
        fused.run(addresses, workspace(fused.workspace_bytes))
        check(cudart.cudaStreamSynchronize(stream))
        return [output.read() for output in outputs]

    expected = computed(timed[0][2])
    for _, name, fused in sorted(timed, key=itemgetter(0)):
        if all(map(_alike, expected, computed(fused))):
            return (folder / name).read_bytes()
        _log.info("The kernel %s computes something else than cuDNN's first: not used", name)
    raise DeploymentError(f"No kernel for {shape} computes the same twice on this GPU.")


@dataclass(frozen=True)
class _Output:
    """What a plan writes: the channels of pixels, at an address on the GPU."""

    address: int
    pixels: int
    channels: int
    kind: np.dtype[Any]

    def clear(self, stream: Any) -> None:
        """Set every number to NaN, or to -1."""
        nbytes = self.pixels * self.channels * self.kind.itemsize
        check(cudart.cudaMemsetAsync(self.address, 0xFF, nbytes, stream))

    def read(self) -> npt.NDArray[Any]:
        """Copy the channels of every pixel, or of each n-th one to the last."""
        row = self.channels * self.kind.itemsize
        step = -(-self.pixels * row // _COMPARED_BYTES)
        array = np.empty((-(-self.pixels // step), self.channels), self.kind)
        start = self.address + (self.pixels - 1) % step * row
        copied = cudart.cudaMemcpy2D(array.ctypes.data, row, start, step * row, row, len(array), _TO_HOST)
        check(copied)
        return array


def _outputs(shape: Shape, addresses: Mapping[str, int]) -> list[_Output]:
    pixels = shape.batch * shape.output_size**2
    kinds = {
        "output": np.int8 if shape.writes == "int8" else np.float32 if shape.kind == "gemm" else np.float16
    }
    if shape.writes == "both":
        kinds["rounded"] = np.int8
    return [_Output(addresses[name], pixels, shape.outputs, np.dtype(kind)) for name, kind in kinds.items()]


def _alike(expected: npt.NDArray[Any], result: npt.NDArray[Any]) -> bool:
    """Whether two outputs differ by rounding alone: products may be added up in another order."""
    one, other = expected.astype(np.float32), result.astype(np.float32)
    if expected.dtype == np.int8:
        tolerance = 1.0
    else:
        tolerance = float(np.abs(one).max(initial=0, where=np.isfinite(one))) / 512
    return np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def milliseconds(run: Callable[[], object], stream: Any) -> float:
    """The time of one run among many, without what starting them takes."""
    run()  # loads the kernel, which cannot be recorded
    graph = recorded(lambda: [run() for _ in range(_REPEATS)], stream)
    begin, end = (check(cudart.cudaEventCreate()) for _ in range(2))
    try:
        check(cudart.cudaGraphLaunch(graph, stream))
        best, total = math.inf, 0.0
        while total < _LEAST_MS:
            check(cudart.cudaEventRecord(begin, stream))
            check(cudart.cudaGraphLaunch(graph, stream))
            check(cudart.cudaEventRecord(end, stream))
            check(cudart.cudaEventSynchronize(end))
            took = check(cudart.cudaEventElapsedTime(begin, end))
            best, total = min(best, took), total + took
        return best / _REPEATS
    finally:
        for event in (begin, end):
            cudart.cudaEventDestroy(event)
        cudart.cudaGraphExecDestroy(graph)


def main() -> None:
    """Compile the shapes on standard input for a GPU into a folder."""
    device, folder = int(sys.argv[1]), Path(sys.argv[2])
    check(cudart.cudaSetDevice(device))
    handle = cudnn.create_handle()
    for fields in json.load(sys.stdin):
        shape = Shape(**fields)
        for number, plan in enumerate(compiled_plans(shape, handle)):
            (folder / f"{shape}.{number}{_SUFFIX}").write_bytes(plan)


if __name__ == "__main__":
    main()
