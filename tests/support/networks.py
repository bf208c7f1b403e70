"""Small networks of every kind, written as torch, TensorFlow and quantisers write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

STEM = "stem = Conv<kernel_shape=[16,16], strides=[16,16]>(data, w)"  # [N, 8, 7, 7]
HEAD = "flat = Flatten(map) out = Gemm<transB=1>(flat, fc)"
WEIGHTS = {"w": (8, 3, 16, 16), "fc": (64, 392)}


def network(
    body: str,
    *,
    opset: int = 17,
    takes: str = "float[N,3,112,112] data",
    gives: str = "float[N,64] out",
    weights: Mapping[str, Any] = WEIGHTS,
) -> onnx.ModelProto:
    """A network in ONNX's text form; weights are arrays, or shapes of random ones."""
    random = np.random.RandomState(0)
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> net ({takes}) => ({gives}) {{ {body} }}'
    )
    for name, weight in weights.items():
        if isinstance(weight, tuple):
            weight = (random.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(weight), name))
    return model


NETWORKS = {
    # Reshapes that carry no batch
    "flatten of two axes": network(
        f"""{STEM}
        shape = Shape(stem) lead = Slice(shape, zero, two, zero) target = Concat<axis=0>(lead, rest)
        tokens = Reshape(stem, target) turned = Transpose<perm=[0,2,1]>(tokens)
        map = MatMul(turned, square) {HEAD}""",
        weights=WEIGHTS | {"zero": [0], "two": [2], "rest": [-1], "square": (8, 8)},
    ),
    "pads in pairs": network(
        f"""{STEM}
        pairs = Reshape(pads, two_columns) turned = Transpose<perm=[1,0]>(pairs)
        row = Reshape(turned, one_row) padded = Pad(stem, row)
        map = Conv<kernel_shape=[3,3]>(padded, inner) {HEAD}""",
        weights=WEIGHTS
        | {"pads": [0, 0, 0, 0, 1, 1, 1, 1], "two_columns": [-1, 2], "one_row": [-1], "inner": (8, 8, 3, 3)},
    ),
    "slopes viewed as a map": network(
        f"""{STEM} slopes = Reshape(slope, view) map = PRelu(stem, slopes) {HEAD}""",
        weights=WEIGHTS | {"slope": (8,), "view": [1, 8, 1, 1]},
    ),
    # The image's shape
    "class token": network(
        f"""
        shape = Shape(data) batch = Gather<axis=0>(shape, first) rest = Constant<value_ints=[1, 8]>()
        as_list = Unsqueeze(batch, zero) target = Concat<axis=0>(as_list, rest) tokens = Expand(token, target)
        {STEM}
        rows = Reshape(stem, to_rows) turned = Transpose<perm=[0,2,1]>(rows)
        all = Concat<axis=1>(tokens, turned) mixed = Softmax<axis=1>(all)
        mean = ReduceMean<axes=[1],keepdims=0>(mixed) out = Gemm<transB=1>(mean, fc)""",
        weights={
            "w": (8, 3, 16, 16),
            "fc": (64, 8),
            "token": (1, 1, 8),
            "first": np.int64(0),
            "zero": [0],
            "to_rows": [0, 8, 49],
        },
    ),
    # Operators and forms of opset 18 and newer
    "opset 18": network(
        f"""{STEM}
        a, b = Split<axis=1, num_outputs=2>(stem) joined = Concat<axis=1>(a, b)
        padded = Pad(joined, pads, , axes) soft = Mish(padded)
        mean = ReduceMean<keepdims=1, noop_with_empty_axes=0>(soft, axes) scaled = Mul(soft, mean)
        map = Resize<mode="nearest", axes=[2,3]>(scaled, , , sizes) {HEAD}""",
        opset=18,
        weights={
            "w": (8, 3, 16, 16),
            "fc": (64, 800),
            "pads": [0, 0, 1, 1],
            "axes": [2, 3],
            "sizes": [10, 10],
        },
    ),
    "opset 20": network(f"{STEM} map = Gelu(stem) {HEAD}", opset=20),
    "opset 21": network(
        f"{STEM} map = GroupNormalization<num_groups=4>(stem, scale, bias) {HEAD}",
        opset=21,
        weights=WEIGHTS | {"scale": (8,), "bias": (8,)},
    ),
    # Shapes of outputs
    "[N, D, 1, 1]": network(
        f"{STEM} out = Conv<kernel_shape=[7,7]>(stem, head)",
        gives="float[N,64,1,1] out",
        weights={"w": (8, 3, 16, 16), "head": (64, 8, 7, 7)},
    ),
    "[N, D] by a Squeeze": network(
        f"{STEM} map = Conv<kernel_shape=[7,7]>(stem, head) out = Squeeze(map, sides)",
        weights={"w": (8, 3, 16, 16), "head": (64, 8, 7, 7), "sides": [2, 3]},
    ),
    "[D] of a batch of one": network(
        f"{STEM} flat = Reshape(stem, one_row) row = Gemm<transB=1>(flat, fc) out = Squeeze(row, zero)",
        takes="float[1,3,112,112] data",
        gives="float[64] out",
        weights=WEIGHTS | {"one_row": [1, 392], "zero": [0]},
    ),
    # Weights that are computed
    "normalised weights": network(
        f"""{STEM} map = Relu(stem) flat = Flatten(map)
        length = ReduceL2<axes=[1]>(fc) unit = Div(fc, length) out = Gemm<transB=1>(flat, unit)"""
    ),
    "standardised convolution": network(
        f"""mean = ReduceMean<axes=[1,2,3]>(raw) w = Sub(raw, mean) {STEM} map = Relu(stem) {HEAD}""",
        weights={"raw": (8, 3, 16, 16), "fc": (64, 392)},
    ),
    "a branch that is always taken": network(
        f"""{STEM} one = Constant<value_ints=[1]>() always = Cast<to=9>(one)
        map = If(always) <then_branch = then () => (float[n,c,h,w] yes) {{ yes = Relu(stem) }},
        else_branch = otherwise () => (float[n,c,h,w] no) {{ no = Identity(stem) }}> {HEAD}"""
    ),
    # Other widths, other layouts
    "192 numbers, channels last": network(
        f"data = Transpose<perm=[0,3,1,2]>(image) {STEM} map = Relu(stem) {HEAD}",
        takes="float[N,112,112,3] image",
        gives="float[N,192] out",
        weights={"w": (8, 3, 16, 16), "fc": (192, 392)},
    ),
    "bytes": network(
        f"data = Cast<to=1>(image) {STEM} map = Relu(stem) {HEAD}", takes="uint8[N,3,112,112] image"
    ),
    "bytes that are pooled first": network(
        f"""
        numbers = Cast<to=1>(image) planes = Transpose<perm=[0,3,1,2]>(numbers)
        data = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(planes) {STEM} map = Relu(stem) {HEAD}""",
        takes="uint8[N,112,112,3] image",
    ),
    "a map that is resized": network(
        f"""{STEM}
        wide = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(stem, roi, scales)
        map = AveragePool<kernel_shape=[2,2], strides=[2,2]>(wide) {HEAD}""",
        weights=WEIGHTS | {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "no convolution": network(
        "flat = Flatten(data) out = Gemm<transB=1>(flat, fc)", weights={"fc": (64, 3 * 112 * 112)}
    ),
}

ONE_CROP = network(
    f"""{STEM} deep = Conv<kernel_shape=[1,1]>(stem, inner)
            rows = Reshape(deep, to_rows) turned = Transpose<perm=[0,2,1]>(rows)
            all = Concat<axis=1>(token, turned) active = Mish(all)
            mean = ReduceMean<keepdims=0>(active, axes) out = Gemm<transB=1>(mean, fc)""",
    takes="float[1,3,112,112] data",
    gives="float[1,64] out",
    opset=18,
    weights={
        "axes": [1],
        "w": (8, 3, 16, 16),
        "inner": (8, 8, 1, 1),
        "fc": (64, 8),
        "token": (1, 1, 8),
        "to_rows": [1, 8, 49],
    },
)
"""Its batch is fixed to one, and its Concat keeps it from being freed."""
