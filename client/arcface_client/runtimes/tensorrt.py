"""TensorRT: a plan on one GPU."""

from __future__ import annotations

import hashlib
import logging
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

from ..contract import (
    CROP_BYTES,
    CROP_SHAPE,
    EMBEDDING_DIM,
    INPUT_NAME,
    OUTPUT_NAME,
    Crops,
    Embeddings,
    TensorSpec,
    check_tensors,
)
from ..errors import ClientClosedError, DeploymentError, InputError
from .cuda import DeviceBuffer, PinnedBuffer, callers_gpu_kept, check, free_bytes
from .profiles import Profiles
from .tensorrt_log import CollectingLogger
from .tensorrt_start import start

_log = logging.getLogger(__name__)

_TRITON_TYPES = {"UINT8": "UINT8", "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8"}
_MIB = 1 << 20
_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


class TensorRt:
    """A plan loaded with TensorRT: one stream, one CUDA graph for each batch size in use.

    Safe to share between threads: calls follow one another, and leave the thread's current GPU as it was. A
    graph is recorded when a batch size comes the second time; where it cannot be, batches run without one.

    Args:
        plan_path: Plan with the contract's tensors.
        sha256: What the plan's manifest says its SHA-256 is; a plan is native code, so another one is
            refused before TensorRT sees it. None trusts the file.
        device: Ordinal of the GPU.

    Raises:
        CudaError: There is no such GPU, or its driver is too old.
        DeploymentError: The plan is missing or another one, or TensorRT cannot load it; the message has
            its reason.
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
        self._graphs: dict[int, cudart.cudaGraphExec_t] = {}
        self._without_graph: set[int] = set()
        self._log = CollectingLogger()
        check(cudart.cudaGetDevice())  # where there is no driver, this says so
        with callers_gpu_kept():
            check(cudart.cudaSetDevice(device))
            self._load(path, plan)

    def _load(self, path: Path, plan: bytes) -> None:
        free_before = free_bytes()
        self._runtime = start(trt.Runtime, self._log)
        if self._runtime is None:
            raise DeploymentError(
                f"TensorRT {trt.__version__} does not start: {self._log.last_error}. Does the GPU's driver "
                "know the CUDA that this TensorRT is for?"
            )
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeploymentError(f"TensorRT {trt.__version__} cannot load {path}: {self._log.last_error}")
        check_tensors(str(path), *_tensor_specs(self._engine))
        # What was taken is given back if the rest fails; an embedder may try again later.
        with ExitStack() as taken:
            self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
            taken.callback(_destroy, self._stream)
            self._profiles = Profiles(self._engine, self._stream, self._log)
            taken.callback(self._profiles.close)
            self.max_batch_size = self._profiles.max_batch_size
            """The largest batch that the plan takes."""

            self._crops = PinnedBuffer((self.max_batch_size, *CROP_SHAPE), np.uint8)
            taken.callback(self._crops.free)
            self._embeddings = PinnedBuffer((self.max_batch_size, EMBEDDING_DIM), np.float32)
            taken.callback(self._embeddings.free)
            self._device_crops = DeviceBuffer(self._crops.nbytes)
            taken.callback(self._device_crops.free)
            self._device_embeddings = DeviceBuffer(self._embeddings.nbytes)
            taken.callback(self._device_embeddings.free)
            self._profiles.set_address(INPUT_NAME, self._device_crops.address)
            self._profiles.set_address(OUTPUT_NAME, self._device_embeddings.address)
            self.vram_mb = (free_before - free_bytes()) / _MIB
            """What loading took of the GPU's memory, in MiB; not exact while others take or free some."""

            self._taken = taken.pop_all()

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, 512] unit rows out.

        Raises:
            InputError: N is 0 or above ``max_batch_size``, or the runtime is closed.
            CudaError: The GPU failed.
        """
        count = len(crops)
        if not 0 < count <= self.max_batch_size:
            raise InputError(f"The batch has {count} crops; the plan takes 1 to {self.max_batch_size}.")
        with self._lock, callers_gpu_kept():
            if self._closed:
                raise ClientClosedError("The plan's memory was freed; load it again.")
            check(cudart.cudaSetDevice(self._device))
            np.copyto(self._crops.array[:count], crops)
            self._launch(count)
            check(cudart.cudaStreamSynchronize(self._stream))
            return self._embeddings.array[:count].copy()

    def close(self) -> None:
        """Free everything on the GPU, when the batch that runs is done.

        Raises:
            CudaError: The GPU has failed, and gives back what is left when the process ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with callers_gpu_kept():
                try:
                    with self._taken:  # goes on to the end, whatever fails
                        check(cudart.cudaSetDevice(self._device))
                        check(cudart.cudaStreamSynchronize(self._stream))
                        while self._graphs:
                            check(cudart.cudaGraphExecDestroy(self._graphs.popitem()[1]))
                finally:  # TensorRT wants its objects freed in this order
                    del self._engine
                    del self._runtime

    def _launch(self, count: int) -> None:
        """Start copying in, running and copying out; from a graph if this size has come before."""
        graph = self._graphs.get(count)
        if graph is not None:
            check(cudart.cudaGraphLaunch(graph, self._stream))
            return
        self._enqueue(count)
        if count in self._seen and count not in self._without_graph:
            try:
                self._graphs[count] = self._record(count)
            except DeploymentError as error:  # no memory for it, say; a GPU that failed shows afterwards
                self._without_graph.add(count)
                _log.warning("Batches of %d run without a CUDA graph: %s", count, error)
        self._seen.add(count)

    def _record(self, count: int) -> cudart.cudaGraphExec_t:
        """Record what ``_enqueue`` does; right after it did, since a new size sets up TensorRT first."""
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._stream, mode))
        try:
            self._enqueue(count)
        except BaseException:
            cudart.cudaStreamEndCapture(self._stream)  # says no more than that the capture failed
            raise
        graph = check(cudart.cudaStreamEndCapture(self._stream))
        try:
            return check(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)

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
        nbytes = count * EMBEDDING_DIM * np.dtype(np.float32).itemsize
        check(cudart.cudaMemcpyAsync(self._embeddings.address, embeddings, nbytes, _TO_HOST, self._stream))


def _destroy(stream: cudart.cudaStream_t) -> None:
    check(cudart.cudaStreamDestroy(stream))


def _tensor_specs(engine: trt.ICudaEngine) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of an engine as the contract writes them."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        datatype = _TRITON_TYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name)
        batch, *shape = engine.get_tensor_shape(name)
        spec = (name, datatype, tuple(shape) if batch == -1 else (batch, *shape))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(spec)
    return inputs, outputs
