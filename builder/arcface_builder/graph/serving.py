"""Turn a fixed source graph into the serving graph: crops in, unit vectors out.

The contract is ``arcface_client.contract``. The preprocessing is Cast, Sub and Transpose. Division by std
and the order of the channels go into the weights of the first convolution, which is exact because its
padding is zero with any factor. The subtraction cannot go there: at the border the mean would be another
one. In FP16 it is exact, since x - 127.5 has at most eight binary digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from arcface_client.contract import CROP_SHAPE, EMBEDDING_DIM, INPUT_NAME, OUTPUT_NAME, Embeddings
from arcface_client.runtimes.onnxruntime import RUN_ERRORS

from ..errors import NotArcFaceError
from .batchnorm import fold_batch_norms, fold_preactivations
from .edit import (
    BATCH,
    IR_VERSION,
    bypass,
    constant,
    first_convolution,
    first_line,
    image_dims,
    numpy_dtype,
    session,
    set_constant,
    sole_consumer,
    tidy,
)

_CONTRACT_KEY: Final = "arcface.contract"
"""Metadata key that marks a serving graph of this project; its value is the contract's version."""

_CONTRACT_VERSION: Final = "1"
_UNIT_TOLERANCE: Final = 1e-3


def serving_graph(
    source: ir.Model, mean: Sequence[float], std: Sequence[float], *, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Build the serving graph.

    Args:
        source: A source graph whose issues are fixed; it is left as it is.
        mean: Subtracted from R, G and B, in pixel values, before the first convolution.
        std: What R, G and B are divided by then.
        metadata: What to write into the file beside the contract's mark.

    Raises:
        NotArcFaceError: The graph is written in a way that does not allow it.
    """
    model = source.clone()
    model.graph.name = "arcface"
    model.producer_name, model.producer_version, model.doc_string = "arcface-builder", None, None
    model.ir_version = IR_VERSION
    _embed_two(model)  # or it cannot be served in batches
    _replace_preprocessing(model, mean, std)
    fold_batch_norms(model)
    fold_preactivations(model)
    _end_with_unit_vectors(model)
    tidy(model)
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.metadata_props.update({_CONTRACT_KEY: _CONTRACT_VERSION, **metadata})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def is_serving_graph(proto: onnx.ModelProto) -> bool:
    """Whether a file is a serving graph of this project."""
    return any(entry.key == _CONTRACT_KEY for entry in proto.metadata_props)


def is_unit_length(model: ir.Model) -> bool:
    """Whether a graph with a free batch normalises its output itself, found by running it on two images.

    Raises:
        NotArcFaceError: ONNX Runtime cannot run it on a batch of two.
    """
    return bool(np.abs(np.linalg.norm(_embed_two(model), axis=1) - 1).max() < _UNIT_TOLERANCE)


def _embed_two(model: ir.Model) -> Embeddings:
    """Run a graph on a batch of two, which it may declare and not support."""
    image = model.graph.inputs[0]
    shape = (2, *image_dims(image))
    # Values of 0, 1 and 2 suit bytes, normalised pixels and anything between.
    images = np.random.RandomState(0).randint(0, 3, shape).astype(numpy_dtype(image))
    try:
        (embeddings,) = session(model).run(None, {image.name: images})
    except RUN_ERRORS as error:
        raise NotArcFaceError(
            f"ONNX Runtime cannot run the graph on a batch of two ({first_line(error)}); "
            "export it again with a free batch dimension."
        ) from error
    if embeddings.shape != (2, EMBEDDING_DIM):
        raise NotArcFaceError(
            f"The graph turns a batch of two into {list(embeddings.shape)}; expected [2, {EMBEDDING_DIM}]."
        )
    return np.asarray(embeddings)


def _replace_preprocessing(model: ir.Model, mean: Sequence[float], std: Sequence[float]) -> None:
    graph, convolution = model.graph, first_convolution(model)
    weight, seen = constant(convolution.inputs[1]), convolution.inputs[0]
    if weight is None or seen is None or sole_consumer(seen) is not convolution:
        raise NotArcFaceError(
            "The image goes to other nodes than the first convolution; export the backbone alone."
        )

    image = ir.val(INPUT_NAME, ir.DataType.UINT8, (BATCH, *CROP_SHAPE))
    mean_array = np.array(mean[0] if len({*mean}) == 1 else mean[::-1], np.float32)  # B, G, R
    mean_value = ir.Value(name="pixel_mean", const_value=ir.tensor(mean_array, name="pixel_mean"))
    mean_value.dtype, mean_value.shape = ir.DataType.FLOAT, ir.Shape(mean_array.shape)
    tape = ir.tape.Tape()
    # TensorRT takes bytes only as a network input that is cast at once.
    pixels = tape.op("Cast", [image], {"to": ir.DataType.FLOAT}, name="pixels")
    centred = tape.op("Sub", [pixels, mean_value], name="centred")
    planes = tape.op("Transpose", [centred], {"perm": [0, 3, 1, 2]}, name="planes")
    scaled = weight / np.array(std).reshape(1, 3, 1, 1)
    set_constant(convolution, 1, np.ascontiguousarray(scaled[:, ::-1]).astype(np.float32), "bgr")
    graph.insert_before(convolution, tape.nodes)
    convolution.replace_input_with(0, planes)
    passes.RemoveUnusedNodesPass()(model)
    graph.register_initializer(mean_value)
    graph.inputs[:] = [image]


def _end_with_unit_vectors(model: ir.Model) -> None:
    """End with a division by the length, which stays exact in every precision.

    A source may already end with a normalisation, of which a part could run in float16.
    """
    graph = model.graph
    last = graph.outputs[0].producer()
    if last is not None and last.op_type == "LpNormalization":
        # TensorRT 8.5 needs a plugin library for it; ReduceL2 and Div are built in.
        bypass(last)
    embedding = graph.outputs[0]
    tape = ir.tape.Tape()
    length = tape.op("ReduceL2", [embedding], {"axes": [1], "keepdims": 1}, name="length")
    unit = tape.op("Div", [embedding, length], name="unit")
    graph.extend(tape.nodes)
    graph.outputs[:] = [unit]
    embedding.name = "raw_embedding"
    graph.outputs[0].name = OUTPUT_NAME
    graph.outputs[0].dtype, graph.outputs[0].shape = ir.DataType.FLOAT, ir.Shape((BATCH, EMBEDDING_DIM))
