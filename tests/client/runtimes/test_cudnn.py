"""What the cuDNN runtime can be tested for without a GPU; the rest is in tests/gpu."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.graph.quantise import calibrate, quantise, to_graph
from arcface_builder.source.load import OnnxFile
from arcface_client.errors import CudaError, DeploymentError
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.runtimes.cudnn.network import Affine, Array, Convolution, Network, Rounding, place
from arcface_client.runtimes.cudnn.reader import read_network
from support.exports import small_arcface
from support.tiny import tiny_serving_graph

CHANNELS = 32

Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def serving_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cudnn")
    onnx.save(small_arcface(channels=CHANNELS), folder / "source.onnx")
    return build(OnnxFile(folder / "source.onnx"), name="small", repository=folder).path / "model.onnx"


def changed(path: Path, change: Change, folder: Path) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def initializer(graph: onnx.GraphProto, part: str) -> Any:
    return next(tensor for tensor in graph.initializer if part in tensor.name)


def fill(graph: onnx.GraphProto, part: str, *values: float) -> None:
    """Set a constant to values, over and over."""
    tensor = initializer(graph, part)
    array = np.resize(np.array(values, np.float32), tensor.dims)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def by_channel(values: Array) -> Array:
    return values[None, :, None, None]


def convolved(maps: Array, weight: Array, stride: int, padding: int) -> Array:
    kernel = weight.shape[2]
    padded = np.pad(maps, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    view: Any = np.lib.stride_tricks.sliding_window_view
    windows = view(padded, (kernel, kernel), axis=(2, 3))
    strided = windows[:, :, ::stride, ::stride]
    return np.asarray(np.einsum("nchwrs,kcrs->nkhw", strided, weight, optimize=True), np.float32)


def computed(network: Network, crops: npt.NDArray[np.uint8]) -> Array:
    """What a network's layers compute, in NumPy."""
    maps = {network.first.source.name: (crops.astype(np.float32) - network.mean).transpose(0, 3, 1, 2)}
    for layer in (network.first, *([network.shifted] if network.shifted else []), *network.layers):
        result = maps[layer.source.name]
        if isinstance(layer, Affine):
            result = result * by_channel(layer.scale) + by_channel(layer.shift)
        elif isinstance(layer, Convolution):
            result = convolved(result, layer.weight, layer.stride, layer.padding)
            if layer.scale is not None:
                assert layer.source.step is not None
                assert np.array_equal(layer.weight, layer.weight.astype(np.int8))
                result = result * by_channel(layer.scale)
            result = result + by_channel(layer.bias)
            if layer.slopes is not None:
                result = np.where(result > 0, result, result * by_channel(layer.slopes))
            if layer.residual is not None:
                result = result + maps[layer.residual.name]
        for value in layer.outputs:
            assert result.shape[1:] == (value.channels, value.size, value.size)
            rounded = result if value.step is None else np.clip(np.rint(result / value.step), -128, 127)
            maps[value.name] = rounded
    features = maps[network.features.name]
    pixels = features.reshape(*features.shape[:2], -1)
    raw = np.einsum("ncp,pdc->nd", pixels, network.gemm) + network.bias
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda graph: None, id="as built"),
        pytest.param(lambda graph: fill(graph, "prelu2.slope", -0.5, 1.5, 2.5), id="steep slopes"),
        pytest.param(lambda graph: fill(graph, "pixel_mean", 123.7), id="another mean"),
    ],
)
def test_the_layers_compute_what_the_serving_graph_does(
    serving_graph: Path, change: Change, tmp_path: Path
) -> None:
    path = changed(serving_graph, change, tmp_path)

    network = read_network(path)

    (expected,) = onnxruntime.InferenceSession(path).run(None, {"image": golden_crops()})
    np.testing.assert_allclose(computed(network, golden_crops()), expected, atol=2e-6)
    assert network.shifted is not None  # the first block's batch norm, which the builder cannot fold
    assert network.dim == 512


@pytest.fixture(scope="module")
def int8_graph(serving_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every convolution but the first in int8; sums and batch norms read what is not rounded."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    path.write_bytes(quantise(serving_graph.read_bytes(), faces.face_like(40)).content)
    return path


@pytest.mark.parametrize(("left", "precision"), [(0, "int8"), (2, "mixed")])
def test_int8_convolutions_compute_what_the_quantised_graph_does(
    serving_graph: Path, left: int, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    calibrated = calibrate(serving_graph.read_bytes(), faces.face_like(40))
    path.write_bytes(to_graph(calibrated, calibrated.usual[left:], precision).content)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (expected,) = onnxruntime.InferenceSession(path, options).run(None, {"image": golden_crops()})

    network = read_network(path)

    assert network.precision == precision
    assert largest_drift(expected, computed(network, golden_crops())) < 2e-5
    # What only a batch norm or the first layer could round is rounded by layers of its own.
    roundings = {layer.source.name for layer in network.layers if isinstance(layer, Rounding)}
    assert roundings <= {"prelu1", "bn2a"}


def test_weights_that_are_quantised_in_the_graph_and_biases_in_int32_are_read(
    int8_graph: Path, tmp_path: Path
) -> None:
    def as_other_quantisers_write(graph: onnx.GraphProto) -> None:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for number, node in enumerate(list(graph.node)):
            weight = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if weight is not None:
                steps = numpy_helper.to_array(constants[node.input[1]]).reshape(-1, 1, 1, 1)
                exact = numpy_helper.to_array(weight) * steps
                weight.CopyFrom(numpy_helper.from_array(exact, weight.name))
                names = [weight.name, *node.input[1:]]
                graph.node.insert(
                    0, helper.make_node("QuantizeLinear", names, [f"{weight.name}.q"], f"q{number}", axis=0)
                )
                node.input[0] = f"{weight.name}.q"
            elif node.op_type == "Conv" and len(node.input) == 3:
                bias = constants[node.input[2]]
                step = numpy_helper.from_array(np.array(1e-6, np.float32), f"{bias.name}.step")
                numbers = np.rint(numpy_helper.to_array(bias) / np.float32(1e-6)).astype(np.int32)
                bias.CopyFrom(numpy_helper.from_array(numbers, bias.name))
                graph.initializer.append(step)
                graph.node.insert(
                    0, helper.make_node("DequantizeLinear", [bias.name, step.name], [f"{bias.name}.exact"])
                )
                node.input[2] = f"{bias.name}.exact"

    ours = read_network(int8_graph)
    others = read_network(changed(int8_graph, as_other_quantisers_write, tmp_path))

    for one, other in zip(ours.layers, others.layers, strict=True):
        if isinstance(one, Convolution) and isinstance(other, Convolution):
            np.testing.assert_array_equal(one.weight, other.weight)
            np.testing.assert_allclose(one.bias, other.bias, atol=1e-5)
            np.testing.assert_allclose(np.array(one.scale), np.array(other.scale))


@pytest.mark.parametrize(("graph", "count"), [("serving_graph", 3), ("int8_graph", 4)])
def test_feature_maps_that_are_needed_at_once_have_places_of_their_own(
    graph: str, count: int, request: pytest.FixtureRequest
) -> None:
    network = read_network(request.getfixturevalue(graph))
    assert network.shifted is not None
    first = [network.first.output, network.shifted.output]

    places = place(network.layers, first)

    for number, layer in enumerate(network.layers):
        needed = {value.name for later in network.layers[number:] for value in later.sources}
        written = {value.name for value in first}
        written |= {value.name for one in network.layers[:number] for value in one.outputs}
        held = [places[name] for name in needed & written] + [places[value.name] for value in layer.outputs]
        assert len(set(held)) == len(held)
    assert len(set(places.values())) == count


def add_sigmoid(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.name == "prelu2")
    node.CopyFrom(helper.make_node("Sigmoid", [node.input[0]], list(node.output), name="gate"))


def grouped(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.name == "conv3")
    node.attribute.append(helper.make_attribute("group", CHANNELS))
    weight = initializer(graph, "conv3.weight")
    array = numpy_helper.to_array(weight)[:, :1]
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), weight.name))


def other_tail(graph: onnx.GraphProto) -> None:
    graph.node[-1].CopyFrom(
        helper.make_node("Max", list(graph.node[-1].input), ["embedding"], name="greatest")
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_sigmoid, "first node that is not as in an IResNet is Sigmoid gate; serve the model with"),
        (grouped, "first node that is not as in an IResNet is Conv conv3"),
        (other_tail, "first node that is not as in an IResNet is ReduceL2 length"),
        (lambda graph: fill(graph, "conv4.weight", 1, np.nan), "node conv4 has weights that are NaN, inf"),
        (lambda graph: fill(graph, "conv4.weight", 1e5), "node conv4 has weights .* too large for FP16"),
    ],
)
def test_another_graph_is_refused_and_its_first_unknown_node_is_named(
    serving_graph: Path, change: Change, reason: str, tmp_path: Path
) -> None:
    path = changed(serving_graph, change, tmp_path)

    with pytest.raises(DeploymentError, match=rf"cuDNN cannot run \S+changed.onnx: .*{reason}"):
        read_network(path)


def test_an_asymmetric_range_is_refused(int8_graph: Path, tmp_path: Path) -> None:
    def shifted(graph: onnx.GraphProto) -> None:
        zero = initializer(graph, "int8_zero")
        zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))

    with pytest.raises(DeploymentError, match=r"is QuantizeLinear \w+\.quantise; serve the model"):
        read_network(changed(int8_graph, shifted, tmp_path))


def test_a_graph_without_convolutions_is_refused(tmp_path: Path) -> None:
    onnx.save(tiny_serving_graph(), tmp_path / "tiny.onnx")
    with pytest.raises(DeploymentError, match="AveragePool"):
        read_network(tmp_path / "tiny.onnx")


def test_eight_channels_are_refused(tmp_path: Path) -> None:
    onnx.save(small_arcface(), tmp_path / "source.onnx")
    path = build(OnnxFile(tmp_path / "source.onnx"), name="small", repository=tmp_path).path / "model.onnx"
    with pytest.raises(DeploymentError, match="Conv conv1"):
        read_network(path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\xff")
    with pytest.raises(DeploymentError, match="is not a readable ONNX file"):
        read_network(tmp_path / "model.onnx")
    with pytest.raises(DeploymentError, match="No model file at"):
        read_network(tmp_path / "missing.onnx")


def test_constants_may_be_nodes(serving_graph: Path, tmp_path: Path) -> None:
    def as_nodes(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        del graph.initializer[:]

    network = read_network(changed(serving_graph, as_nodes, tmp_path))

    np.testing.assert_array_equal(network.gemm, read_network(serving_graph).gemm)


def test_the_first_layers_weights_are_packed_row_by_row(serving_graph: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the package cuda-bindings")
    from arcface_client.runtimes.cudnn import kernels

    network = read_network(serving_graph)
    packed, unit = kernels.packed_weights(network.first)

    assert packed.shape == (CHANNELS, 32)
    assert 0.5 < np.abs(packed).max() <= 1
    for row in range(3):
        for column in range(3):
            taps = packed[:, 10 * row + 3 * column :][:, :3].astype(np.float32) * unit
            np.testing.assert_allclose(taps, network.first.weight[:, :, row, column], rtol=1e-3, atol=1e-6)
    assert not packed[:, [9, 19, 29, 30, 31]].any()


def test_only_the_pixels_that_the_shortcut_reads_are_written(serving_graph: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the package cuda-bindings")
    from arcface_client.runtimes.cudnn import kernels

    network = read_network(serving_graph)
    assert network.shifted is not None

    assert kernels.stride_of_readers(network.first.output, network.layers) == 4
    assert kernels.stride_of_readers(network.shifted.output, network.layers) == 1


def test_a_missing_library_says_what_to_install(serving_graph: Path) -> None:
    cudnn = pytest.importorskip("cudnn", reason="needs the package nvidia-cudnn-frontend")
    from arcface_client.errors import MissingExtraError
    from arcface_client.runtimes.cudnn.runtime import Cudnn

    try:
        cudnn.backend_version()
    except RuntimeError:
        with pytest.raises(MissingExtraError, match="pip install nvidia-cudnn-cu13"):
            Cudnn(serving_graph)
    else:
        pytest.skip("this machine has cuDNN")


class Frontend:
    """Stands for the frontend with another version of the library."""

    def __init__(self, version: int, text: str) -> None:
        self.backend_version = lambda: version
        self.backend_version_string = lambda: text


def test_an_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cudnn", reason="needs the package nvidia-cudnn-frontend")
    from arcface_client.runtimes.cudnn import runtime

    monkeypatch.setattr(runtime, "cudnn", Frontend(91900, "9.19.0"))
    assert runtime.cudnn_version() == "9.19.0"
    monkeypatch.setattr(runtime, "cudnn", Frontend(8907, "8.9.7"))
    with pytest.raises(DeploymentError, match=r"cuDNN 8\.9\.7 is installed; the fused kernels need 9\.\d"):
        runtime.cudnn_version()


def test_an_old_gpu_and_an_old_driver_are_named(serving_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cudnn", reason="needs the package nvidia-cudnn-frontend")
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs the package cuda-bindings")
    from arcface_client.runtimes.cudnn import runtime

    success, too_old = cudart.cudaError_t.cudaSuccess, cudart.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(runtime, "cudnn", Frontend(91900, "9.19.0"))
    monkeypatch.setattr(cudart, "cudaGetDeviceCount", lambda: (success, 1))
    monkeypatch.setattr(runtime, "compute_capability", lambda _: "7.5")
    with pytest.raises(DeploymentError, match=r"GPU 0 has compute capability 7\.5; .* need 8\.0"):
        runtime.Cudnn(serving_graph)

    monkeypatch.setattr(cudart, "cudaGetDeviceCount", lambda: (too_old, 0))
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (success, 11040))
    with pytest.raises(CudaError, match=r"driver supports CUDA 11\.4; .* 'cuda-bindings<12'$"):
        runtime.Cudnn(serving_graph)


def test_what_has_one_lock_takes_turns_in_threads_as_in_processes(tmp_path: Path) -> None:
    pytest.importorskip("cudnn", reason="needs the package nvidia-cudnn-frontend")
    from arcface_client.runtimes.cudnn.plans import locked

    def take_turn() -> None:
        with locked(tmp_path / "new/lock"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "new/lock"):
            waiting = pool.submit(take_turn)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        waiting.result(timeout=5)


def test_plans_are_kept_for_each_gpu_and_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("cudnn", reason="needs the package nvidia-cudnn-frontend")
    from arcface_client.runtimes.cudnn.fused import Shape
    from arcface_client.runtimes.cudnn.plans import PlanCache

    shape: Any = Shape("conv", 8, 64, 56, 128, 3, 1, 1, "flat", residual=True)
    cache = PlanCache(tmp_path, "NVIDIA H200", "9.19.0")
    assert cache.get(shape) is None
    cache.put(shape, b"a plan")

    assert cache.get(shape) == b"a plan"
    assert [path.name for path in cache.folder.iterdir()] == [
        "conv-8x56x56x64-128-3x3s1p1-flat-residual.plan"
    ]
    assert PlanCache(tmp_path, "NVIDIA H200", "9.20.0").get(shape) is None
    assert PlanCache(tmp_path, "NVIDIA L4", "9.19.0").get(shape) is None

    (tmp_path / "file").touch()
    full = PlanCache(tmp_path / "file", "NVIDIA L4", "9.19.0")
    for _ in range(2):
        full.put(shape, b"a plan")
    (said,) = caplog.messages
    assert said.startswith("Kernels are not kept for the next start: ")
