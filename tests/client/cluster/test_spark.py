"""Embedding in a local Spark of two processes, by its own ``predict_batch_udf``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arcface_client.bulk import SPARK_TYPE, make_predict_fn
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import CropError
from arcface_client.runtimes.onnxruntime import OnnxRuntime

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of pandas 3 and of Spark's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(600),
]
pytest.importorskip("pyspark", reason="needs pyspark: make test-ray")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "1g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def settings(built: Path) -> dict[str, Any]:
    return {
        "backend_type": "onnxruntime",
        "embedding_model": "small",
        "embedding_model_repository": str(built / "models"),
    }


@pytest.fixture(scope="module")
def wanted(built: Path, crops: Crops) -> Embeddings:
    return OnnxRuntime(built / "models/small_onnx/1/model.onnx").embed(crops[:20])


def test_images_of_files_get_embeddings_or_the_reason_why_not(
    spark: Any, settings: dict[str, Any], crops: Crops, wanted: Embeddings, tmp_path: Path
) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import StructType

    for index, crop in enumerate(crops[:20]):
        Image.fromarray(crop[..., ::-1]).save(tmp_path / f"{index:02}.png")
    (tmp_path / "20.png").write_bytes(b"no image")
    embed = predict_batch_udf(
        make_predict_fn(**settings), return_type=StructType.fromDDL(SPARK_TYPE), batch_size=8
    )
    images = spark.read.format("binaryFile").load(str(tmp_path))
    rows = images.select("path", embed("content").alias("face")).orderBy("path").collect()
    faces = [row.face for row in rows]
    np.testing.assert_allclose([face.embedding for face in faces[:20]], wanted, atol=1e-5)
    assert {face.source for face in faces[:20]} == {"small_onnx:1 at this process"}
    assert [face.error for face in faces[:20]] == [None] * 20
    assert faces[20].source is None
    assert "cannot be read as an image: its format is unknown" in faces[20].error


def test_crops_of_pixels_get_embeddings(
    spark: Any, settings: dict[str, Any], crops: Crops, wanted: Embeddings
) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import StructType

    embed = predict_batch_udf(
        make_predict_fn(**settings),
        return_type=StructType.fromDDL(SPARK_TYPE),
        batch_size=8,
        input_tensor_shapes=[[112, 112, 3]],
    )
    pixels = [(index, crop.reshape(-1).tolist()) for index, crop in enumerate(crops[:5])]
    data = spark.createDataFrame(pixels, "id int, crop array<short>")
    rows = data.select("id", embed("crop").alias("face")).orderBy("id").collect()
    np.testing.assert_allclose([row.face.embedding for row in rows], wanted[:5], atol=1e-5)


def test_pixels_that_were_normalised_are_refused(settings: dict[str, Any], crops: Crops) -> None:
    predict = make_predict_fn(**settings)()
    with pytest.raises(CropError, match="go from 0 to 255"):
        predict(crops[:2].astype(np.float32) - 127.5)
