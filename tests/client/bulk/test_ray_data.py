"""The actor class for Ray Data, called as an actor calls it; tests/client/cluster has a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from arcface_client.bulk import EmbedCrops
from arcface_client.contract import CROP_BYTES, Crops, Embeddings
from arcface_client.errors import CropError, InputError, OtherEmbeddingSpaceError
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.runtimes.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def settings(built: Path) -> dict[str, Any]:
    return {
        "backend_type": "onnxruntime",
        "embedding_model": "small",
        "embedding_model_repository": built / "models",
    }


@pytest.fixture(scope="module")
def actor(settings: dict[str, Any]) -> EmbedCrops:
    return EmbedCrops(**settings)


@pytest.fixture(scope="module")
def wanted(built: Path, crops: Crops) -> Embeddings:
    return OnnxRuntime(built / "models/small_onnx/1/model.onnx").embed(crops[:6])


def as_binary(crops: Crops) -> pa.Array:
    return pa.array([crop.tobytes() for crop in crops], pa.binary(CROP_BYTES))


def as_list(crops: Crops) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(crops.reshape(-1)), CROP_BYTES)


def as_tensor(crops: Crops) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(crops)


def test_a_batch_of_numpy_gets_an_embedding_in_place_of_each_crop(
    actor: EmbedCrops, crops: Crops, wanted: Embeddings
) -> None:
    batch = crops[:6].copy()
    batch.setflags(write=False)
    made = actor({"crop": batch, "id": np.array([*"abcdef"]), "camera": np.arange(6)})
    assert set(made) == {"id", "camera", "embedding", "source", "error"}
    np.testing.assert_allclose(made["embedding"], wanted, atol=1e-6)
    assert made["source"].tolist() == ["small_onnx:1 at this process"] * 6
    assert made["error"].tolist() == [None] * 6
    assert made["camera"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("column", [as_binary, as_list, as_tensor])
def test_an_arrow_table_gets_the_columns_of_a_gallery(
    actor: EmbedCrops, crops: Crops, wanted: Embeddings, column: Callable[[Crops], pa.Array]
) -> None:
    whole = pa.table({"id": [*"abcdef"], "crop": column(crops[:6])})
    for table in (whole, pa.concat_tables([whole.slice(0, 4), whole.slice(4)])):
        made = actor(table)
        assert made.column_names == ["id", "embedding", "source", "error"]
        assert made.schema.field("embedding").type == pa.list_(pa.float32(), wanted.shape[1])
        np.testing.assert_allclose(np.stack(made.column("embedding").to_pylist()), wanted, atol=1e-6)


def test_a_row_that_could_not_be_read_keeps_its_error(
    actor: EmbedCrops, crops: Crops, wanted: Embeddings
) -> None:
    errors = ["it is empty", None]
    made = actor(pa.table({"crop": as_binary(crops[:2]), "error": errors}))
    assert made.column("error").to_pylist() == errors
    assert made.column("source").to_pylist() == [None, "small_onnx:1 at this process"]
    embeddings = np.stack(made.column("embedding").to_pylist())
    assert np.isnan(embeddings[0]).all()
    np.testing.assert_allclose(embeddings[1], wanted[1], atol=1e-6)

    none_left = actor({"crop": crops[:2], "error": np.array(["a", "b"], object)})
    assert none_left["embedding"].shape == (2, wanted.shape[1])
    assert len(actor({"crop": crops[:0]})["embedding"]) == 0


def test_what_is_not_a_batch_of_crops_is_refused_with_what_was_expected(
    actor: EmbedCrops, crops: Crops
) -> None:
    with pytest.raises(InputError, match="has the columns image; expected 'crop'"):
        actor({"image": crops[:2]})
    with pytest.raises(CropError, match=r"fixed_size_binary\[100\]; expected 37632 bytes in each row"):
        actor(pa.table({"crop": pa.array([bytes(100)], pa.binary(100))}))
    with pytest.raises(CropError, match=r"expected \(N, 112, 112, 3\)"):
        actor({"crop": crops[:2, :100]})


def test_an_actor_of_another_embedding_space_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OtherEmbeddingSpaceError, match=r"This actor's model has another source model"):
        EmbedCrops(**settings, space=EmbeddingSpace(source_sha256="ab" * 32))
