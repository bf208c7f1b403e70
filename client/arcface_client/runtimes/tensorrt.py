"""TensorRT: a plan on one GPU."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

from ..contract import (
    CROP_BYTES,
    CROP_SHAPE,
    INPUT_NAME,
    OUTPUT_NAME,
    Crops,
    Embeddings,
    check_tensors,
)
from ..errors import ClientClosedError, DeploymentError, InputError
from .cuda import DeviceBuffer, PinnedBuffer, check, current_gpu_kept, free_bytes, recorded
from .tensorrt_api import create_context, error_log, scratch_bytes, start, tensor_specs

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_FLOAT_BYTES = np.dtype(np.float32).itemsize
_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


class TensorRt:
    """A plan loaded with TensorRT: one stream, one CUDA graph for each batch size in use.

    Safe to share between threads: calls run one after another, and leave the thread's current GPU as it was.
    A graph is recorded when a batch size comes the second time; where that fails, the size runs without one.

    Args:
        plan_path: Plan with the contract's tensors.
        sha256: The plan's SHA-256 from its manifest. A plan is native code, so a file with another one is
            refused before TensorRT reads it. None trusts the file.
        device: Ordinal of the GPU.

    Attributes:
        max_batch_size: The largest batch that the plan takes.
        vram_mb: GPU memory that loading took, in MiB; inexact while other programs allocate or free some.

    Raises:
        CudaError: There is no such GPU, or its driver is too old.
        DeploymentError: The plan is missing, is not the published one, or TensorRT cannot load it; the
            message has TensorRT's reason.
        ContractError: The plan has other tensors.
    """

    def __init__(self, plan_path: str | Path, *, sha256: str | None = None, device: int = 0) -> None:
        path = Path(plan_path)
        if not path.is_file():
            raise DeploymentError(f"No plan at {path}; build one with `arcface-builder compile`.")
        plan = path.read_bytes()
        actual = hashlib.sha256(plan).hexdigest()
        if sha256 not in (None, actual):
            raise DeploymentError(
                f"{path} has the SHA-256 {actual}; its manifest says {sha256}. Publish it again."
            )
        self._device = device
        self._lock = threading.Lock()
        self._closed = False
        self._seen: set[int] = set()
        self._graphs: dict[int, cudart.cudaGraphExec_t | None] = {}
        self._log = error_log(trt)
        check(cudart.cudaGetDevice())  # without a driver, this raises
        with current_gpu_kept():
            check(cudart.cudaSetDevice(device))
            self._load(path, plan)

    def _load(self, path: Path, plan: bytes) -> None:
        free_before = free_bytes()
        self._runtime = start(trt.Runtime, self._log)
        if self._runtime is None:
            raise DeploymentError(
                f"TensorRT {trt.__version__} does not start: {self._log.last_error}. Does the GPU's driver "
                "support the CUDA version that this TensorRT needs?"
            )
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeploymentError(f"TensorRT {trt.__version__} cannot load {path}: {self._log.last_error}")
        dim = check_tensors(str(path), *tensor_specs(trt, self._engine))
        with ExitStack() as taken:  # frees what was allocated if a later step fails
            self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            taken.callback(_destroy, self._stream)
            self._profiles = Profiles(self._engine, self._stream, self._log)
            taken.callback(self._profiles.close)
            self.max_batch_size = self._profiles.max_batch_size
            self._crops = PinnedBuffer((self.max_batch_size, *CROP_SHAPE), np.uint8)
            taken.callback(self._crops.free)
            self._embeddings = PinnedBuffer((self.max_batch_size, dim), np.float32)
            taken.callback(self._embeddings.free)
            self._device_crops = DeviceBuffer(self._crops.nbytes)
            taken.callback(self._device_crops.free)
            self._device_embeddings = DeviceBuffer(self._embeddings.nbytes)
            taken.callback(self._device_embeddings.free)
            self._profiles.set_address(INPUT_NAME, self._device_crops.address)
            self._profiles.set_address(OUTPUT_NAME, self._device_embeddings.address)
            self.vram_mb = (free_before - free_bytes()) / _MIB
            self._taken = taken.pop_all()

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            InputError: N is 0 or above ``max_batch_size``, or the runtime is closed.
            CudaError: The GPU failed.
        """
        count = len(crops)
        if not 0 < count <= self.max_batch_size:
            raise InputError(f"The batch has {count} crops; the plan takes 1 to {self.max_batch_size}.")
        with self._lock, current_gpu_kept():
            if self._closed:
                raise ClientClosedError("The plan is closed; load it again.")
            check(cudart.cudaSetDevice(self._device))
            np.copyto(self._crops.array[:count], crops)
            self._launch(count)
            check(cudart.cudaStreamSynchronize(self._stream))
            return self._embeddings.array[:count].copy()

    def back_to_back_s(self, crops: Crops, repeats: int) -> float:
        """Measure the seconds for a batch while the GPU never waits for the host; copies are included."""
        self.embed(crops)
        with self._lock, current_gpu_kept():
            check(cudart.cudaSetDevice(self._device))
            started = time.perf_counter()
            for _ in range(repeats):
                self._launch(len(crops))
            check(cudart.cudaStreamSynchronize(self._stream))
            return (time.perf_counter() - started) / repeats

    def close(self) -> None:
        """Free everything on the GPU, after the batch that is running.

        Raises:
            CudaError: The GPU has failed; the rest is freed when the process ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with current_gpu_kept():
                try:
                    with self._taken:  # runs to the end even if a step fails
                        check(cudart.cudaSetDevice(self._device))
                        check(cudart.cudaStreamSynchronize(self._stream))
                        for graph in filter(None, self._graphs.values()):
                            check(cudart.cudaGraphExecDestroy(graph))
                finally:  # TensorRT requires this order
                    del self._engine
                    del self._runtime

    def _launch(self, count: int) -> None:
        """Start copying in, running and copying out, from a CUDA graph if there is one for this size."""
        graph = self._graphs.get(count)
        if graph is not None:
            check(cudart.cudaGraphLaunch(graph, self._stream))
            return
        self._enqueue(count)
        if count in self._seen and count not in self._graphs:
            try:
                self._graphs[count] = recorded(lambda: self._enqueue(count), self._stream)
            except DeploymentError as error:  # for example, no memory for it
                self._graphs[count] = None
                _log.warning("Batches of %d run without a CUDA graph: %s", count, error)
        self._seen.add(count)

    def _enqueue(self, count: int) -> None:
        crops, embeddings = self._device_crops.address, self._device_embeddings.address
        context = self._profiles.context_for(count)
        if not context.set_input_shape(INPUT_NAME, (count, *CROP_SHAPE)):
            raise DeploymentError(f"TensorRT does not take a batch of {count}: {self._log.last_error}")
        check(
            cudart.cudaMemcpyAsync(crops, self._crops.address, count * CROP_BYTES, _TO_DEVICE, self._stream)
        )
        if not context.execute_async_v3(int(self._stream)):
            raise DeploymentError(f"TensorRT cannot run a batch of {count}: {self._log.last_error}")
        nbytes = count * self._embeddings.array.shape[1] * _FLOAT_BYTES
        check(cudart.cudaMemcpyAsync(self._embeddings.address, embeddings, nbytes, _TO_HOST, self._stream))


class Profiles:
    """One execution context for each optimisation profile of a plan, all on the same scratch memory.

    A profile says which kernels run which batch sizes. A context that changes its profile would invalidate
    the CUDA graphs recorded from it. The memory can be shared because one batch runs at a time.

    Args:
        engine: A deserialised engine.
        stream: The CUDA stream that everything runs on.
        log: The ``error_log`` of the engine's runtime.

    Attributes:
        max_batch_size: The largest batch that any profile takes.

    Raises:
        CudaError: The GPU has no memory for it.
        DeploymentError: TensorRT cannot run the engine.
    """

    def __init__(self, engine: Any, stream: cudart.cudaStream_t, log: Any) -> None:
        self._log = log
        indexes = range(engine.num_optimization_profiles)
        shapes = [engine.get_tensor_profile_shape(INPUT_NAME, index) for index in indexes]
        self._batches = [tuple(int(shape[0]) for shape in profile) for profile in shapes]
        self.max_batch_size = max(largest for _, _, largest in self._batches)
        self._scratch = DeviceBuffer(scratch_bytes(trt, engine))
        self._contexts: list[Any] = []
        with ExitStack() as taken:
            taken.callback(self.close)
            for index in indexes:
                context = create_context(trt, engine, self._scratch.address, self._scratch.nbytes)
                if context is None or not context.set_optimization_profile_async(index, int(stream)):
                    raise DeploymentError(
                        f"TensorRT cannot run optimisation profile {index} of the plan: {log.last_error}"
                    )
                self._contexts.append(context)
            check(cudart.cudaStreamSynchronize(stream))
            taken.pop_all()

    def context_for(self, count: int) -> Any:
        """The context of the profile that was tuned for the batch size nearest to ``count``."""
        fitting = [
            (abs(tuned_for - count), index)
            for index, (smallest, tuned_for, largest) in enumerate(self._batches)
            if smallest <= count <= largest
        ]
        return self._contexts[min(fitting)[1]]

    def set_address(self, tensor: str, address: int) -> None:
        """Set the address of an input or output in all contexts.

        Raises:
            DeploymentError: TensorRT refuses the address.
        """
        for context in self._contexts:
            if not context.set_tensor_address(tensor, address):
                raise DeploymentError(f"TensorRT refuses memory for {tensor}: {self._log.last_error}")

    def close(self) -> None:
        """Free the contexts and their memory."""
        self._contexts.clear()
        self._scratch.free()


def _destroy(stream: cudart.cudaStream_t) -> None:
    check(cudart.cudaStreamDestroy(stream))
