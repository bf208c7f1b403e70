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
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import cudnn
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
    """Time the plans that were compiled for a shape.

    Args:
        shape: The shape.
        folder: What ``compile_all`` filled.
        handle: A cuDNN handle.
        addresses: Of the tensors of one layer of this shape.
        workspace: Gives the address of a workspace of so many bytes.
        stream: The handle's stream.

    Returns:
        The fastest one.

    Raises:
        DeploymentError: None of them runs.
    """
    timed: list[tuple[float, bytes]] = []
    for path in sorted(folder.glob(f"{shape}.*{_SUFFIX}")):
        plan = path.read_bytes()
        try:
            fused = Fused(plan, handle)
            at = workspace(fused.workspace_bytes)
            timed.append((milliseconds(partial(fused.run, addresses, at), stream), plan))
        except (*REFUSED, DeploymentError):  # it cannot run or be recorded here; others can
            continue
    if not timed:
        raise DeploymentError(f"cuDNN has no kernel for {shape} on this GPU.")
    return min(timed)[1]


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
