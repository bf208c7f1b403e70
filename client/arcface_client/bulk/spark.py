"""Embedding on Spark, by ``pyspark.ml.functions.predict_batch_udf``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..backends.factory import get_embedding_backend
from ..contract import CROP_SHAPE
from ..errors import CropError
from .decode import Decoded, decode
from .rows import embed, width_of
from .source import Item

SPARK_TYPE: Final = "embedding array<float>, source string, error string"
"""What the function of ``make_predict_fn`` gives for each row, as ``StructType.fromDDL`` reads it."""

Predict = Callable[[npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]


def make_predict_fn(*arguments: Any, resize: bool = False, **settings: Any) -> Callable[[], Predict]:
    """Make what ``predict_batch_udf`` calls once in each Python worker to load the model.

    ::

        embed = predict_batch_udf(
            make_predict_fn("triton", triton_url="triton:8001"),
            return_type=StructType.fromDDL(SPARK_TYPE),
            batch_size=256,
        )
        images = spark.read.format("binaryFile").load("s3a://bucket/crops/")
        images.select("path", embed("content").alias("face"))

    The column holds images as files do (``binaryFile``'s ``content``), or the pixels of crops, 112 * 112 * 3
    integers from 0 to 255 in BGR order, with ``input_tensor_shapes=[[112, 112, 3]]``.

    Args:
        arguments: Of ``get_embedding_backend``.
        resize: Scale images of another size to 112x112 instead of refusing them.
        settings: Of ``get_embedding_backend``.

    Returns:
        A function without arguments, which returns one from a batch to ``embedding``, ``source`` and
        ``error``: as in a gallery.
    """
    return partial(_load, arguments, settings, resize)


def _load(arguments: tuple[Any, ...], settings: Mapping[str, Any], resize: bool) -> Predict:
    backend = get_embedding_backend(*arguments, **settings)
    backend.ensure_ready()
    dim = width_of(backend)

    def predict(batch: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        return embed(backend, _decoded(batch, resize)).arrays(dim)

    return predict


def _decoded(batch: npt.NDArray[Any], resize: bool) -> Decoded:
    if batch.dtype == object:
        items = [Item(f"row {index}", bytes(data or b"")) for index, data in enumerate(batch)]
        return decode(items, resize=resize)
    if batch.dtype not in (np.int8, np.uint8) and not ((batch >= 0) & (batch <= 255)).all():
        raise CropError("The pixels of a crop go from 0 to 255; pass crops as they were cut from the image.")
    crops = batch.reshape(-1, *CROP_SHAPE).astype(np.uint8)  # a ByteType is signed: its bits are the pixel's
    return Decoded([f"row {index}" for index in range(len(crops))], crops, [None] * len(crops))
