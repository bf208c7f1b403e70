"""A network on a GPU: its weights, its feature maps, and a CUDA graph for each batch size."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import cudnn
import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as cudart

from ...contract import CROP_BYTES
from ...errors import CudaError
from ..base import batch_sizes
from ..cuda import DeviceBuffer, check, recorded
from .fused import REFUSED, Fused, Shape, packed
from .kernels import Kernels, packed_constants, packed_weights
from .network import Convolution, Network, place
from .plans import PlanCache, compile_all, fastest

_log = logging.getLogger(__name__)

_ALIGNMENT: Final = 256
_LEAST_WORKSPACE: Final = 1 << 20
_TO_DEVICE: Final = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice

Addresses = dict[str, int]


@dataclass(frozen=True)
class Gpu:
    """A GPU: its ordinal, its compute capability ("90"), and how many multiprocessors it has."""

    index: int
    sm: str
    processors: int


class LoadedNetwork:
    """Everything on the GPU: weights, feature maps, kernels, and the CUDA graphs that run them."""

    def __init__(
        self,
        network: Network,
        gpu: Gpu,
        max_batch_size: int,
        plans: PlanCache,
        stream: Any,
        taken: ExitStack,
    ) -> None:
        self._network = network
        self._stream = stream
        self._taken = taken
        self._kernels = Kernels(network, gpu.sm, gpu.processors)
        taken.callback(self._kernels.close)
        self._handle = cudnn.create_handle()
        taken.callback(cudnn.destroy_handle, self._handle)
        cudnn.set_stream(handle=self._handle, stream=int(stream))
        self._workspace: DeviceBuffer | None = None
        taken.callback(self._free_workspace)
        self._weights, self._unit = self._upload()
        self.max_batch_size = self._allocate(max_batch_size)
        self._fused: dict[Shape, Fused] = {}
        taken.callback(self._fused.clear)
        sizes = batch_sizes(self.max_batch_size)
        self._load(plans, sizes, gpu.index)
        for size in sizes:  # loads the kernels, which cannot be recorded, and takes the whole workspace
            self._run(size)
        check(cudart.cudaStreamSynchronize(stream))
        self._graphs = {}
        for size in sizes:
            graph = self._graphs[size] = recorded(partial(self._run, size), stream)
            taken.callback(cudart.cudaGraphExecDestroy, graph)

    def launch(self, count: int) -> None:
        """Start a batch whose crops are at ``crops``; its embeddings will be at ``embeddings``."""
        size = next(size for size in self._graphs if size >= count)
        check(cudart.cudaGraphLaunch(self._graphs[size], self._stream))

    def _upload(self) -> tuple[dict[str, Addresses], float]:
        """Pack the weights and copy them; returns the addresses by layer, and the first layer's unit."""
        network = self._network
        weights, unit = packed_weights(network.first)
        arrays: dict[str, dict[str, npt.NDArray[Any]]] = {
            layer.output.name: packed(layer) for layer in network.layers
        }
        arrays["first"] = {"weight": weights, "constants": packed_constants(network.first, network.shifted)}
        arrays["gemm"] = {"weight": network.gemm.astype(np.float16), "bias": network.bias}
        sizes = [array.nbytes for tensors in arrays.values() for array in tensors.values()]
        address = self._buffer(sum(map(_aligned, sizes)))
        addresses: dict[str, Addresses] = {}
        for name, tensors in arrays.items():
            addresses[name] = {}
            for tensor, array in tensors.items():
                array = np.ascontiguousarray(array)
                check(cudart.cudaMemcpy(address, array.ctypes.data, array.nbytes, _TO_DEVICE))
                addresses[name][tensor] = address
                address += _aligned(array.nbytes)
        check(cudart.cudaDeviceSynchronize())
        return addresses, unit

    def _allocate(self, max_batch_size: int) -> int:
        """Take memory for the feature maps of the largest batch that the GPU has it for."""
        network = self._network
        values = [network.first.output, *([network.shifted.output] if network.shifted else [])]
        places = place(network.layers, values)
        values += [value for layer in network.layers for value in layer.outputs]
        largest = [
            max(value.nbytes for value in values if places[value.name] == one)
            for one in range(max(places.values()) + 1)
        ]
        ends = [len(network.gemm) * network.dim * 4, CROP_BYTES, network.dim * 4]
        while True:
            parts = [_aligned(nbytes * max_batch_size) for nbytes in (*ends, *largest)]
            try:
                address = self._buffer(sum(parts))
                break
            except CudaError as error:
                if max_batch_size == 1:
                    raise
                _log.warning(
                    "No GPU memory for batches of %d, so %d is tried: %s",
                    max_batch_size,
                    max_batch_size // 2,
                    error,
                )
                max_batch_size //= 2
        starts = [address + sum(parts[:number]) for number in range(len(parts))]
        self._parts, self.crops, self.embeddings, *free = starts
        self._maps = {name: free[place] for name, place in places.items()}
        return max_batch_size

    def _load(self, plans: PlanCache, sizes: Sequence[int], device: int) -> None:
        """Load a plan for every layer in every batch size; what the cache lacks is compiled and timed."""
        shapes = list(dict.fromkeys(shape for size in sizes for shape, _ in self._steps(size)))
        if not self._load_known(plans, shapes):
            return
        with plans.locked():  # another process may be compiling them
            missing = self._load_known(plans, shapes)
            if not missing:
                return
            _log.info(
                "Compiling and timing kernels for %d layers, about a minute; the fastest are kept in %s",
                len(missing),
                plans.folder,
            )
            with tempfile.TemporaryDirectory() as folder:
                compile_all(missing, device, Path(folder))
                for size in sizes:
                    self._choose(size, plans, Path(folder))

    def _load_known(self, plans: PlanCache, shapes: Sequence[Shape]) -> list[Shape]:
        """Load the plans that the cache has; returns the shapes that it lacks."""
        for shape in shapes:
            plan = plans.get(shape) if shape not in self._fused else None
            try:
                if plan is not None:
                    self._fused[shape] = Fused(plan, self._handle)
            except REFUSED as error:
                _log.warning("The kernel for %s in %s is compiled again: %s", shape, plans.folder, error)
        return [shape for shape in shapes if shape not in self._fused]

    def _choose(self, count: int, plans: PlanCache, compiled: Path) -> None:
        """Choose the missing plans of a batch size layer by layer, on the numbers of random crops."""
        crops = np.random.default_rng(0).integers(0, 256, count * CROP_BYTES, np.uint8)
        check(cudart.cudaMemcpy(self.crops, crops.ctypes.data, crops.nbytes, _TO_DEVICE))
        self._run_first(count)
        for shape, addresses in self._steps(count):
            if shape not in self._fused:
                plan = fastest(shape, compiled, self._handle, addresses, self._workspace_of, self._stream)
                plans.put(shape, plan)
                self._fused[shape] = Fused(plan, self._handle)
            self._run_fused(shape, addresses)

    def _workspace_of(self, nbytes: int) -> int:
        """The address of the workspace that all share, which is made larger if it has to be."""
        if self._workspace is None or self._workspace.nbytes < nbytes:
            check(cudart.cudaStreamSynchronize(self._stream))
            self._free_workspace()
            self._workspace = DeviceBuffer(max(nbytes, _LEAST_WORKSPACE))
        return self._workspace.address

    def _free_workspace(self) -> None:
        if self._workspace is not None:
            self._workspace.free()
            self._workspace = None

    def _run(self, count: int) -> None:
        self._run_first(count)
        written = 0
        for shape, addresses in self._steps(count):
            if addresses.get("residual") == written:
                # cuDNN's kernels start while the one before them still runs. Before they read their source,
                # they wait for it to end, but not before they read the residual. A memset ends that.
                check(cudart.cudaMemsetAsync(self._workspace_of(1), 0, 1, self._stream))
            self._run_fused(shape, addresses)
            written = addresses["output"]
        network, bias = self._network, self._weights["gemm"]["bias"]
        self._kernels.last_step(
            self._parts, len(network.gemm), network.dim, bias, self.embeddings, count, self._stream
        )

    def _run_first(self, count: int) -> None:
        network, weights = self._network, self._weights["first"]
        plain = self._maps[network.first.output.name]
        shifted = self._maps[network.shifted.output.name] if network.shifted else 0
        addresses = (weights["weight"], weights["constants"], plain, shifted)
        self._kernels.first_layer(self.crops, count, network.mean, self._unit, addresses, self._stream)

    def _run_fused(self, shape: Shape, addresses: Addresses) -> None:
        fused = self._fused[shape]
        fused.run(addresses, self._workspace_of(fused.workspace_bytes))

    def _steps(self, count: int) -> Iterator[tuple[Shape, Addresses]]:
        """What runs between the two kernels of our own, and where its tensors are."""
        maps = self._maps
        for layer in self._network.layers:
            addresses = dict(self._weights[layer.output.name])
            addresses |= {"source": maps[layer.source.name], "output": maps[layer.output.name]}
            if isinstance(layer, Convolution) and layer.residual is not None:
                addresses["residual"] = maps[layer.residual.name]
            if isinstance(layer, Convolution) and layer.rounded is not None:
                addresses["rounded"] = maps[layer.rounded.name]
            yield Shape.of(layer, count), addresses
        features = self._network.features
        weight, source = self._weights["gemm"]["weight"], maps[features.name]
        shape = Shape("gemm", count, features.channels, features.size, self._network.dim)
        yield shape, {"source": source, "weight": weight, "output": self._parts}

    def _buffer(self, nbytes: int) -> int:
        buffer = DeviceBuffer(nbytes)
        self._taken.callback(buffer.free)
        return buffer.address


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
