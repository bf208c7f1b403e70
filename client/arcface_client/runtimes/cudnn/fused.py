"""Layers as fused cuDNN graphs: FP16 or int8 in and out, float32 in between, one kernel each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import cudnn
import numpy as np
import numpy.typing as npt

from ...errors import DeploymentError
from .network import Affine, Convolution, Layer, Rounding

MOST_PLANS: Final = 3
"""cuDNN's suggestions to try for a shape."""

MORE_KERNELS: Final = (0, 1, 4, 9, 46, 51, 55)
"""Kernels of the same engine to try besides. On an H200 with cuDNN 9.19, IResNet-100 in FP16 is at most
0.04 % slower with the fastest of these and of the suggestions than with 13 kernels for each layer, and those
were within 0.2 % of the fastest of all 56."""

REFUSED: Final = (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError)
"""What the frontend raises for a graph or a plan that cuDNN does not take."""

_HALF: Final = cudnn.data_type.HALF
_FLOAT: Final = cudnn.data_type.FLOAT
_INT8: Final = cudnn.data_type.INT8
_INT32: Final = cudnn.data_type.INT32
_KERNEL: Final = cudnn.knob_type.KERNEL_CFG
_HEURISTICS: Final = (cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK)
_UIDS: Final = {
    name: uid
    for uid, name in enumerate(
        ("source", "weight", "bias", "slopes", "residual", "scale", "shift", "output", "steps", "rounded"),
        start=1,
    )
}
"""What a plan calls the tensors, whatever its shape."""


@dataclass(frozen=True)
class Shape:
    """What a fused graph depends on; layers of one shape share it.

    Attributes:
        kind: "conv", "affine" (a batch norm), "rounding" or "gemm".
        batch: Crops at a time.
        channels: Channels of the feature map that it reads.
        size: Height and width of that.
        outputs: Channels of what it writes; for "gemm", the embedding's numbers.
        kernel: Height and width of a convolution's kernels.
        stride: Its stride.
        padding: Its padding.
        prelu: How the PRelu behind it is computed: a slope of at most 1 needs a step less than others.
        residual: Whether a residual is added.
        reads: What it multiplies.
        writes: What it writes; "both" is FP16, and int8 besides.
    """

    kind: Literal["conv", "affine", "rounding", "gemm"]
    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    prelu: Literal["none", "flat", "steep"] = "none"
    residual: bool = False
    reads: Literal["fp16", "int8"] = "fp16"
    writes: Literal["fp16", "int8", "both"] = "fp16"

    @classmethod
    def of(cls, layer: Layer, batch: int) -> Shape:
        """The shape of a layer in a batch."""
        source, outputs = layer.source, layer.output.channels
        if isinstance(layer, Affine):
            return cls("affine", batch, source.channels, source.size, outputs)
        if isinstance(layer, Rounding):
            return cls("rounding", batch, source.channels, source.size, outputs, writes="int8")
        return cls(
            "conv",
            batch,
            source.channels,
            source.size,
            outputs,
            layer.weight.shape[2],
            layer.stride,
            layer.padding,
            "none" if layer.slopes is None else "flat" if layer.slopes.max() <= 1 else "steep",
            layer.residual is not None,
            "fp16" if layer.scale is None else "int8",
            "both" if layer.rounded else "fp16" if layer.output.step is None else "int8",
        )

    @property
    def topology(self) -> tuple[str, ...]:
        """Shapes of one topology share compiled kernels."""
        window = (str(self.kernel), str(self.stride))
        return (self.kind, *window, self.prelu, str(self.residual), self.reads, self.writes)

    def __str__(self) -> str:
        window = f"{self.kernel}x{self.kernel}s{self.stride}p{self.padding}" if self.kind == "conv" else ""
        extras = [self.prelu] * (self.prelu != "none") + ["residual"] * self.residual
        extras += [f"{self.reads}-{self.writes}"] * (self.reads != "fp16" or self.writes != "fp16")
        sizes = f"{self.batch}x{self.size}x{self.size}x{self.channels}-{self.outputs}"
        return "-".join(filter(None, (self.kind, sizes, window, *extras)))


def packed(layer: Layer) -> dict[str, npt.NDArray[Any]]:
    """The weights of a layer as cuDNN reads them, by their name in its fused graph."""
    if isinstance(layer, Affine):
        return {"scale": layer.scale, "shift": layer.shift}
    step = next((value.step for value in layer.outputs if value.step is not None), None)
    result: dict[str, npt.NDArray[Any]] = {}
    if step is not None:
        result["steps"] = np.full(layer.output.channels, 1 / step, np.float32)
    if isinstance(layer, Convolution):
        weight = layer.weight.transpose(0, 2, 3, 1)
        result |= {
            "weight": weight.astype(np.float16 if layer.scale is None else np.int8),
            "bias": layer.bias,
        }
        result |= {} if layer.scale is None else {"scale": layer.scale}
        result |= {} if layer.slopes is None else {"slopes": layer.slopes}
    return result


def compiled_plans(shape: Shape, handle: Any) -> Iterator[bytes]:
    """Compile kernels for a shape, cuDNN's suggestions first; each takes a few tenths of a second of a core.

    Raises:
        DeploymentError: cuDNN does not take the graph.
    """
    try:
        graph = _operation_graph(shape, handle)
        graph.create_execution_plans(list(_HEURISTICS))
        graph.check_support()
    except REFUSED as error:
        raise DeploymentError(f"cuDNN cannot run {shape}: {error}") from error
    engine, _ = graph.get_engine_and_knobs_at_index(0)
    suggested = set()
    for index in range(min(graph.get_execution_plan_count(), MOST_PLANS)):
        its_engine, knobs = graph.get_engine_and_knobs_at_index(index)
        if its_engine != engine:
            continue  # the engine that cuDNN puts first always had the fastest kernel
        suggested.add(knobs.get(_KERNEL))
        try:
            graph.build_plan_at_index(index)
            yield bytes(graph.serialize(as_bytes=True))
        except REFUSED:  # this one does not suit the GPU; others do
            continue
    for number in MORE_KERNELS:
        if shape.kind != "conv" or number in suggested:
            continue
        try:
            graph = _operation_graph(shape, handle)
            graph.create_execution_plan(engine, {_KERNEL: number})
            graph.check_support()
            graph.build_plans()
            yield bytes(graph.serialize(as_bytes=True))
        except REFUSED:
            continue


def _operation_graph(shape: Shape, handle: Any) -> Any:
    graph = cudnn.pygraph(
        io_data_type=_HALF, intermediate_data_type=_FLOAT, compute_data_type=_FLOAT, handle=handle
    )
    tensors = _Tensors(graph)
    output = _GRAPHS[shape.kind](shape, tensors)
    if shape.writes != "int8":
        kind = _FLOAT if shape.kind == "gemm" else _HALF
        output.set_output(True).set_data_type(kind).set_uid(_UIDS["output"])
    if shape.writes != "fp16":
        rounded = graph.mul(output, tensors.by_channel("steps", shape.outputs))
        name = "output" if shape.writes == "int8" else "rounded"
        rounded.set_output(True).set_data_type(_INT8).set_uid(_UIDS[name])
    graph.validate()
    graph.build_operation_graph()
    return graph


class Fused:
    """A compiled kernel.

    Args:
        plan: What ``compiled_plans`` gave, with the same cuDNN for the same kind of GPU.
        handle: A cuDNN handle, whose stream it runs on.

    Attributes:
        workspace_bytes: GPU memory that it needs while it runs.

    Raises:
        RuntimeError, ValueError: cuDNN cannot load it.
    """

    def __init__(self, plan: bytes, handle: Any) -> None:
        # CUDA graphs start a little faster when they do not keep the plan alive; here the runtime does.
        self._graph = cudnn.pygraph(handle=handle, cuda_graph_retention=cudnn.cuda_graph_retention.NONE)
        self._graph.deserialize(handle, plan)
        self._handle = handle
        self.workspace_bytes = int(self._graph.get_workspace_size())

    def run(self, addresses: Mapping[str, int], workspace: int) -> None:
        """Start it on the handle's stream.

        Args:
            addresses: Where its tensors are, by their name in the fused graph.
            workspace: Where ``workspace_bytes`` are.
        """
        self._graph.execute(
            {_UIDS[name]: address for name, address in addresses.items()}, workspace, self._handle
        )


class _Tensors:
    """Makes the tensors of a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def image(self, name: str, batch: int, channels: int, size: int, kind: Any = _HALF) -> Any:
        """A feature map or kernels, with the channels last."""
        return self.array(
            name, [batch, channels, size, size], [size * size * channels, 1, size * channels, channels], kind
        )

    def by_channel(self, name: str, channels: int) -> Any:
        """A number for each channel."""
        return self.image(name, 1, channels, 1, _FLOAT)

    def array(self, name: str, dims: list[int], strides: list[int], kind: Any = _HALF) -> Any:
        """Any tensor."""
        return self.graph.tensor(name=name, dim=dims, stride=strides, data_type=kind, uid=_UIDS[name])


def _conv(shape: Shape, tensors: _Tensors) -> Any:
    graph, outputs = tensors.graph, shape.outputs
    numbers, sums = (_HALF, _FLOAT) if shape.reads == "fp16" else (_INT8, _INT32)
    result = graph.conv_fprop(
        image=tensors.image("source", shape.batch, shape.channels, shape.size, numbers),
        weight=tensors.image("weight", outputs, shape.channels, shape.kernel, numbers),
        padding=[shape.padding] * 2,
        stride=[shape.stride] * 2,
        dilation=[1, 1],
        compute_data_type=sums,
    )
    if shape.reads == "int8":
        result = graph.mul(result.set_data_type(_INT32), tensors.by_channel("scale", outputs))
    result = graph.bias(input=result, bias=tensors.by_channel("bias", outputs))
    if shape.prelu != "none":
        slopes = tensors.by_channel("slopes", outputs)
        if shape.prelu == "flat":
            result = graph.max(result, graph.mul(result, slopes))
        else:
            below = graph.mul(graph.relu(graph.neg(result)), slopes)
            result = graph.sub(graph.relu(result), below)
    if shape.residual:
        size = (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1
        result = graph.add(result, tensors.image("residual", shape.batch, outputs, size))
    return result


def _affine(shape: Shape, tensors: _Tensors) -> Any:
    graph = tensors.graph
    source = tensors.image("source", shape.batch, shape.channels, shape.size)
    scaled = graph.mul(source, tensors.by_channel("scale", shape.channels))
    return graph.add(scaled, tensors.by_channel("shift", shape.channels))


def _rounding(shape: Shape, tensors: _Tensors) -> Any:
    return tensors.image("source", shape.batch, shape.channels, shape.size)


def _gemm(shape: Shape, tensors: _Tensors) -> Any:
    """One product for each pixel of the feature map, in float32, which the last step adds up.

    One product of all pixels would keep few of the GPU's multiprocessors busy.
    """
    batch, channels, outputs, pixels = shape.batch, shape.channels, shape.outputs, shape.size**2
    return tensors.graph.matmul(
        A=tensors.array("source", [pixels, batch, channels], [channels, pixels * channels, 1]),
        B=tensors.array("weight", [pixels, channels, outputs], [outputs * channels, 1, channels]),
        compute_data_type=_FLOAT,
    )


_GRAPHS: Final[Mapping[str, Callable[[Shape, _Tensors], Any]]] = {
    "conv": _conv,
    "affine": _affine,
    "rounding": _rounding,
    "gemm": _gemm,
}
