import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arcface_client.crops import as_batch
from arcface_client.errors import CropError

RNG = np.random.default_rng(0)
BATCH: NDArray[np.uint8] = RNG.integers(0, 256, (3, 112, 112, 3), np.uint8)


def test_a_good_batch_is_passed_through_without_a_copy() -> None:
    assert as_batch(BATCH) is BATCH or np.shares_memory(as_batch(BATCH), BATCH)


def test_a_list_of_crops_is_stacked_in_order() -> None:
    np.testing.assert_array_equal(as_batch(list(BATCH)), BATCH)


@pytest.mark.parametrize("crops", [[], BATCH[:0]], ids=["empty list", "empty array"])
def test_no_crops_make_an_empty_batch(crops: NDArray[np.uint8]) -> None:
    assert as_batch(crops).shape == (0, 112, 112, 3)


def test_rgb_crops_are_turned_into_bgr() -> None:
    np.testing.assert_array_equal(as_batch(BATCH[..., ::-1], color="rgb"), BATCH)


def test_read_only_and_strided_arrays_are_fine() -> None:
    frozen = BATCH.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(as_batch(frozen), BATCH)
    doubled = np.repeat(BATCH, 2, axis=2)[:, :, ::2]
    assert not doubled.flags.c_contiguous
    result = as_batch(doubled)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, BATCH)


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (BATCH[0], r"single crop; pass \[crop\]"),
        (BATCH.astype(np.float32), r"crops has dtype float32; expected uint8"),
        (BATCH.astype(np.int64), r"crops has dtype int64"),
        (BATCH[:, :100], r"shape \(3, 100, 112, 3\); expected \(N, 112, 112, 3\).*norm_crop"),
        (np.zeros((1, 112, 112, 4), np.uint8), r"alpha channel"),
        (np.zeros((1, 112, 112, 1), np.uint8), r"three channels"),
        (np.zeros((1, 3, 112, 112), np.uint8), r"channels first"),
        ([BATCH[0], np.zeros((112, 112), np.uint8)], r"crops\[1\] has shape \(112, 112\).*three channels"),
        ([BATCH[0].astype(np.float16)], r"crops\[0\] has dtype float16"),
        ([BATCH[0], "face.png"], r"crops\[1\] is str; expected a numpy array"),
        ([Image.new("RGB", (112, 112))], r"is Image; .* pass numpy\.asarray\(image\) with color='rgb'"),
        (Image.new("RGB", (112, 112)), r"crops is Image; .* pass numpy\.asarray\(image\) with color='rgb'"),
        (np.zeros((2, 0), np.uint8), r"shape \(2, 0\)"),
        (np.zeros((2, 112, 112), np.uint8), r"repeat a grey one"),
        (None, r"crops is NoneType; expected an array or a list"),
        (iter(BATCH), r"pass an iterator to `EmbeddingClient.stream`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_is_not_a_batch_of_crops_is_refused_with_what_to_do(
    crops: NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(CropError, match=message):
        as_batch(crops)


def test_an_unknown_color_is_refused() -> None:
    with pytest.raises(CropError, match="color is 'grb'; expected 'bgr'"):
        as_batch(BATCH, color="grb")  # type: ignore[arg-type]
