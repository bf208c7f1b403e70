"""Crops are read as OpenCV would read them, and a file that is not a crop is one clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcface_client.contract import Crops
from arcface_client.errors import ImageFileError
from arcface_client.evaluation.images import PassedOver, find_images, read_crop

PIXELS = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)


def png(pixels: Crops) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_png_gives_its_pixels_in_bgr(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "crop.png")
    np.testing.assert_array_equal(read_crop(tmp_path / "crop.png"), PIXELS[..., ::-1])


def test_a_camera_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.fromarray(PIXELS).save(tmp_path / "crop.png", exif=exif)
    np.testing.assert_array_equal(read_crop(tmp_path / "crop.png"), np.rot90(PIXELS, -1)[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_pixel_formats_become_bgr(tmp_path: Path, mode: str) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "crop.tiff")
    assert read_crop(tmp_path / "crop.tiff").shape == (112, 112, 3)


def test_another_size_is_refused_unless_resized(tmp_path: Path) -> None:
    Image.new("RGB", (50, 80)).save(tmp_path / "crop.png")
    with pytest.raises(
        ImageFileError, match=r"is 50x80; expected an aligned crop of 112x112\. Align it with .* --resize\.$"
    ):
        read_crop(tmp_path / "crop.png")
    assert read_crop(tmp_path / "crop.png", resize=True).shape == (112, 112, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, png(PIXELS)[:5000]],
    ids=["empty", "text", "zeros", "truncated"],
)
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "crop.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"crop\.png cannot be read as an image"):
        read_crop(tmp_path / "crop.png")


def test_grey_of_sixteen_bits_is_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((112, 112), 40000, np.uint16)).save(tmp_path / "crop.png")
    with pytest.raises(
        ImageFileError, match=r"is grey with more than 8 bits a pixel \(Pillow's mode I(;16)?\)"
    ):
        read_crop(tmp_path / "crop.png")


def test_folders_are_searched_in_order_and_named_files_are_always_taken(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list(find_images([tmp_path / "notes.txt", tmp_path]))
    assert [str(Path(file).relative_to(tmp_path)) for file in found] == [
        "notes.txt",
        "a.PNG",
        "b.jpg",
        "deep/c.webp",
    ]


def test_links_to_files_are_followed_and_links_to_folders_are_counted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "crops").mkdir()
    for name in ("elsewhere/a.png", "crops/b.jp2", "crops/c"):
        (tmp_path / name).touch()
    (tmp_path / "crops/file.png").symlink_to("../elsewhere/a.png")
    (tmp_path / "crops/broken.png").symlink_to("nowhere.png")
    (tmp_path / "crops/folder").symlink_to("../elsewhere")
    passed_over = PassedOver()

    found = list(find_images([tmp_path / "crops"], passed_over))

    assert [Path(file).name for file in found] == ["broken.png", "file.png"]
    assert passed_over == PassedOver(other_files=2, linked_folders=1)
    with pytest.raises(ImageFileError, match=r"broken\.png cannot be read as an image: .*No such file"):
        read_crop(found[0])
