from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcface_client.errors import ImageFileError
from arcface_client.evaluation.samples import generated_samples, samples_from
from arcface_client.models.golden import golden_crops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(30):
        Image.new("RGB", (112, 112), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    return tmp_path


def test_generated_crops_begin_with_the_golden_ones_and_all_differ() -> None:
    samples = generated_samples(50)
    assert samples.crops.shape == (50, 112, 112, 3)
    assert samples.crops.dtype == np.uint8
    np.testing.assert_array_equal(samples.crops[:8], golden_crops())
    assert len({crop.tobytes() for crop in samples.crops}) == 50
    assert len(samples.names) == 50


@pytest.mark.parametrize(
    ("count", "reds"), [(2, [0, 29]), (4, [0, 9, 19, 29]), (30, list(range(30))), (99, list(range(30)))]
)
def test_crops_of_a_larger_folder_are_taken_evenly(folder: Path, count: int, reds: list[int]) -> None:
    samples = samples_from(folder, count)
    assert samples.crops[:, 0, 0, 2].tolist() == reds
    assert samples.names == [str(folder / f"{red:02}.png") for red in reds]


def test_a_file_that_is_not_a_crop_is_skipped_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "03.png").write_bytes(b"not an image")
    Image.new("RGB", (64, 64)).save(folder / "04.png")
    samples = samples_from(folder, 30)
    assert samples.skipped == [str(folder / "03.png"), str(folder / "04.png")]
    assert len(samples.crops) == 28
    assert caplog.text.count("with --resize.") == 1
    assert samples_from(folder, 30, resize=True).skipped == [str(folder / "03.png")]


def test_a_folder_without_two_crops_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"There is no image in .*; give a folder of 112x112 face crops"):
        samples_from(tmp_path, 10)
    with pytest.raises(ImageFileError, match=r"missing cannot be read: No such file"):
        samples_from(tmp_path / "missing", 10)
    Image.new("RGB", (112, 112)).save(tmp_path / "only.png")
    with pytest.raises(ImageFileError, match=r"1 of 1 files in .* are face crops; expected at least two"):
        samples_from(tmp_path, 10)
