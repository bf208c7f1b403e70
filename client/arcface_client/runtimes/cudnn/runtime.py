"""A serving graph on one GPU, through cuDNN."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cudnn
import numpy as np
from cuda.bindings import runtime as cudart

from ...contract import CROP_BYTES, CROP_SHAPE, Crops, Embeddings
from ...errors import ClientClosedError, CudaError, DeploymentError, InputError, MissingExtraError
from ...models.files import cache_folder
from ..cuda import (
    DeviceBuffer,
    PinnedBuffer,
    check,
    compute_capability,
    current_gpu_kept,
    device_count,
    free_bytes,
)
from .loaded import Gpu, LoadedNetwork
from .plans import PlanCache, locked
from .reader import read_network

_log = logging.getLogger(__name__)

DEFAULT_MAX_BATCH: Final = 256
_OLDEST_CUDNN: Final = 90000
_AMPERE: Final = 80
_MIB: Final = 1 << 20
_SLOTS: Final = 3
"""Calls under way: one computes, one is copied, and one is being answered."""

_LARGE: Final = 128
"""Crops of a batch that has the GPU to itself: switching between the batches of two processes costs a
fifteenth of them."""

_TO_DEVICE: Final = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST: Final = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
_ON_DEVICE: Final = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice


@dataclass(frozen=True)
class _Slot:
    """What one call needs for itself, so that its crops can be copied while another one runs."""

    crops: PinnedBuffer
    on_gpu: DeviceBuffer
    embeddings: PinnedBuffer
    copied: Any
    done: Any


class Cudnn:
    """A serving graph in FP16 or int8, one CUDA graph for each batch size that is a power of two.

    Other sizes are padded to the next one. Safe to share between threads: the GPU runs one batch after
    another, while the crops of the next are copied. Calls leave the thread's current GPU as it was.

    Args:
        model_path: ONNX file that ``arcface-builder build`` wrote, of an IResNet.
        device: Ordinal of the GPU.
        max_batch_size: The largest batch to take.
        cache: The cache folder, where the choice of kernels is kept; None takes the usual one. Without a
            choice in it, loading takes up to a minute longer.

    Attributes:
        max_batch_size: The largest batch; less than asked for if the GPU has no memory for that.
        precision: What its convolutions are computed in: "fp16", "int8", or "mixed", which is both.
        device: The GPU's name.
        version: cuDNN's version, for example "9.19.0".
        vram_mb: GPU memory that loading took, in MiB; inexact while other programs allocate or free some.

    Raises:
        MissingExtraError: cuDNN or NVRTC is not installed.
        CudaError: There is no such GPU, its driver is too old, or it has no memory left.
        DeploymentError: The GPU or cuDNN is too old, or the graph is not of this kind.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: int = 0,
        max_batch_size: int = DEFAULT_MAX_BATCH,
        cache: Path | None = None,
    ) -> None:
        network = read_network(Path(model_path))
        self.version, self.precision = cudnn_version(), network.precision
        count = device_count()
        if device >= count:
            raise CudaError(f"There is no GPU {device}: CUDA sees {count}.")
        sm = compute_capability(device).replace(".", "")
        if int(sm) < _AMPERE:
            raise DeploymentError(
                f"GPU {device} has compute capability {sm[:-1]}.{sm[-1]}; the fused kernels need 8.0."
            )
        self._index = device
        self._lock = threading.Lock()
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._closed = False
        with current_gpu_kept(), ExitStack() as taken:  # frees what was allocated if a later step fails
            check(cudart.cudaSetDevice(device))
            properties = check(cudart.cudaGetDeviceProperties(device))
            self.device: str = properties.name.decode().strip("\0")
            file = f"arcface-{os.getuid()}-{properties.uuid.bytes.hex()}.lock"
            self._turns = Path(tempfile.gettempdir(), file)
            gpu = Gpu(device, sm, properties.multiProcessorCount)
            plans = PlanCache(cache or cache_folder(), self.device, self.version)
            free_before = free_bytes()
            self._stream, self._copies = (_new_stream(taken) for _ in range(2))
            self._network = LoadedNetwork(network, gpu, max_batch_size, plans, self._stream, taken)
            self.max_batch_size = self._network.max_batch_size
            for _ in range(_SLOTS):
                self._slots.put(_new_slot(self.max_batch_size, network.dim, taken))
            check(cudart.cudaStreamSynchronize(self._stream))
            self.vram_mb = (free_before - free_bytes()) / _MIB
            self._taken = taken.pop_all()

    def embed(self, crops: Crops) -> Embeddings:
        """Embed one batch: uint8 [N, 112, 112, 3] BGR in, float32 [N, D] unit rows out.

        Raises:
            InputError: N is 0 or above ``max_batch_size``, or the runtime is closed.
            CudaError: The GPU failed.
        """
        return self.embed_joined([crops])

    def embed_joined(self, batches: Sequence[Crops]) -> Embeddings:
        """Embed several batches as one, each copied once; see ``embed``."""
        return self.start(batches)()

    def start(self, batches: Sequence[Crops]) -> Callable[[], Embeddings]:
        """Start to embed several batches as one; the crops may change as soon as this returns.

        Returns:
            Waits for the embeddings; it has to be called, once. Batches of 128 and more are computed in this
            call, one at a time on a GPU.

        Raises:
            InputError: They have no crops or more than ``max_batch_size``, or the runtime is closed.
            CudaError: The GPU failed.
        """
        count = sum(map(len, batches))
        if not 0 < count <= self.max_batch_size:
            raise InputError(f"The batch has {count} crops; the model takes 1 to {self.max_batch_size}.")
        with ExitStack() as held:
            slot = held.enter_context(self._slot())
            with current_gpu_kept():
                check(cudart.cudaSetDevice(self._index))
                start = 0
                for crops in batches:
                    np.copyto(slot.crops.array[start : start + len(crops)], crops)
                    start += len(crops)
                with self._lock:
                    self._copy_in(slot, count)
                    if count < _LARGE:
                        self._compute(slot, count)
            until_read = held.pop_all()

        def finish() -> Embeddings:
            turn = locked(self._turns) if count >= _LARGE else nullcontext()
            with until_read, current_gpu_kept(), turn:
                check(cudart.cudaSetDevice(self._index))  # a new thread would start on the first
                if count >= _LARGE:
                    with self._lock:
                        self._compute(slot, count)
                check(cudart.cudaEventSynchronize(slot.done))
                embeddings: Embeddings = slot.embeddings.array[:count].copy()
                return embeddings

        return finish

    def back_to_back_s(self, crops: Crops, repeats: int, *, copies: bool = True) -> float:
        """Measure the seconds for a batch while the GPU never waits for the host, with copies or without."""
        self.embed(crops)
        with self._slot() as one, self._slot() as other, self._lock, current_gpu_kept():
            check(cudart.cudaSetDevice(self._index))
            started = time.perf_counter()
            for number in range(repeats):
                slot = (one, other)[number % 2]
                if copies:
                    check(cudart.cudaStreamWaitEvent(self._copies, slot.done, 0))  # its memory is in use
                    self._copy_in(slot, len(crops))
                    self._compute(slot, len(crops))
                else:
                    self._network.launch(len(crops))
            check(cudart.cudaStreamSynchronize(self._stream))
            return (time.perf_counter() - started) / repeats

    def close(self) -> None:
        """Free everything on the GPU, after the batches that are running."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        held = [self._slots.get() for _ in range(_SLOTS)]
        with current_gpu_kept():
            check(cudart.cudaSetDevice(self._index))
            self._taken.close()  # runs to the end even if a step fails
        for slot in held:
            self._slots.put(slot)  # calls that wait for one find the runtime closed

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._slots.get()
        try:
            if self._closed:
                raise ClientClosedError("The model is closed; load it again.")
            yield slot
        finally:
            self._slots.put(slot)

    def _copy_in(self, slot: _Slot, count: int) -> None:
        at, nbytes = slot.on_gpu.address, count * CROP_BYTES
        check(cudart.cudaMemcpyAsync(at, slot.crops.address, nbytes, _TO_DEVICE, self._copies))
        check(cudart.cudaEventRecord(slot.copied, self._copies))

    def _compute(self, slot: _Slot, count: int) -> None:
        network, stream, at, nbytes = self._network, self._stream, slot.on_gpu.address, count * CROP_BYTES
        check(cudart.cudaStreamWaitEvent(stream, slot.copied, 0))
        # The CUDA graphs read from one address; on the GPU, a copy of 256 crops takes 5 us.
        check(cudart.cudaMemcpyAsync(network.crops, at, nbytes, _ON_DEVICE, stream))
        network.launch(count)
        nbytes = slot.embeddings.array[:count].nbytes
        check(cudart.cudaMemcpyAsync(slot.embeddings.address, network.embeddings, nbytes, _TO_HOST, stream))
        check(cudart.cudaEventRecord(slot.done, stream))


def cudnn_version() -> str:
    """The version of the cuDNN library, for example "9.19.0".

    Raises:
        MissingExtraError: It is not installed.
        DeploymentError: It is too old.
    """
    try:
        number, version = int(cudnn.backend_version()), str(cudnn.backend_version_string())
    except RuntimeError as error:  # the frontend found no library
        raise MissingExtraError(
            "cuDNN's library is not installed: pip install nvidia-cudnn-cu13 (or -cu12, as the driver has), "
            "or use one of NVIDIA's images, which bring it."
        ) from error
    if number < _OLDEST_CUDNN:
        raise DeploymentError(f"cuDNN {version} is installed; the fused kernels need 9.0 or newer.")
    return version


def _new_slot(max_batch_size: int, dim: int, taken: ExitStack) -> _Slot:
    crops = PinnedBuffer((max_batch_size, *CROP_SHAPE), np.uint8)
    taken.callback(crops.free)
    on_gpu = DeviceBuffer(crops.nbytes)
    taken.callback(on_gpu.free)
    embeddings = PinnedBuffer((max_batch_size, dim), np.float32)
    taken.callback(embeddings.free)
    copied, done = (_new_event(taken) for _ in range(2))
    return _Slot(crops, on_gpu, embeddings, copied, done)


def _new_event(taken: ExitStack) -> Any:
    event = check(cudart.cudaEventCreateWithFlags(cudart.cudaEventDisableTiming))
    taken.callback(cudart.cudaEventDestroy, event)
    return event


def _new_stream(taken: ExitStack) -> Any:
    stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
    taken.callback(_destroy_stream, stream)
    return stream


def _destroy_stream(stream: Any) -> None:
    check(cudart.cudaStreamSynchronize(stream))
    check(cudart.cudaStreamDestroy(stream))
