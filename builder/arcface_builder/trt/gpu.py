"""The GPU that plans are built for and tried on. CUDA and TensorRT are imported only when needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from arcface_client.errors import CudaError
from arcface_client.runtimes.base import Runtime

from ..errors import CompileError, NoGpuError
from ..store.stored import sm_of
from . import compat
from .inspect import LayerPrecisions, inspect_engine


@dataclass(frozen=True)
class Gpu:
    """A GPU with its TensorRT.

    Attributes:
        trt: The TensorRT module.
        sm: Its architecture, as "86".
        name: Its model.
        driver_version: The newest CUDA that its driver knows, as "13.0".
        target_sm: Build for this architecture instead of the GPU at hand; only TensorRT-RTX can.
    """

    trt: ModuleType
    sm: str
    name: str
    driver_version: str
    target_sm: str | None = None

    def inspect(self, plan: bytes) -> tuple[LayerPrecisions, ...]:
        """Count each profile's layers by precision, in a plan that this process built.

        Raises:
            CompileError: TensorRT cannot load it.
        """
        messages = compat.Messages()
        runtime = compat.started(self.trt, self.trt.Runtime, compat.logger(self.trt, messages), messages)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise CompileError(f"TensorRT cannot load the plan that it built: {messages.to_text()}")
        return inspect_engine(self.trt, engine)

    def free_mb(self) -> int | None:
        """Its free memory in MiB; None if CUDA does not say."""
        if self.target_sm is not None:
            return None
        from arcface_client.runtimes import cuda

        try:
            return cuda.free_bytes() >> 20
        except CudaError:  # a failed build may leave one
            return None

    def load(self, path: Path) -> AbstractContextManager[Runtime]:
        """Load a plan whose bytes were checked."""
        from arcface_client.runtimes.tensorrt import TensorRt

        return closing(TensorRt(path))


def gpu_at_hand() -> Gpu:
    """Find the first GPU; ``CUDA_VISIBLE_DEVICES`` chooses another one.

    Raises:
        NoGpuError: There is no GPU, no TensorRT, no ``cuda-bindings``, or too old a driver.
    """
    trt = compat.find_tensorrt()
    try:
        from cuda.bindings import runtime as cudart

        from arcface_client.runtimes import cuda
    except ImportError as error:
        raise NoGpuError(
            f"CUDA cannot be used from Python ({error}); pip install 'arcface-triton[tensorrt]'."
        ) from error
    try:
        if not cuda.device_count():
            raise NoGpuError(
                "CUDA finds no GPU, and a plan is built on the GPU that it is for; "
                f"run this on one, or {compat.WITHOUT_GPU}"
            )
        properties = cuda.check(cudart.cudaGetDeviceProperties(0))
        return Gpu(
            trt,
            sm=sm_of(cuda.compute_capability(0)),
            name=properties.name.decode(),
            driver_version=cuda.version_text(cuda.check(cudart.cudaDriverGetVersion())),
        )
    except CudaError as error:
        raise NoGpuError(f"CUDA cannot be used: {error}.") from error
