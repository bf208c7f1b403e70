"""Crops are read as OpenCV reads them, and a file that is not a crop is one clear error."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from arcface_client.contract import Crops
from arcface_client.errors import ImageFileError
from arcface_client.evaluation.images import read_crop, search
from arcface_client.models.golden import golden_crops

PIXELS = np.ascontiguousarray(golden_crops()[0])
DEEP = PIXELS.astype(np.uint16) * 257


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """The golden crop as a file's bytes; its alpha channel is not even."""
    image = Image.fromarray(PIXELS[..., ::-1]).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(PIXELS[..., 0]))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_opencv(content: bytes) -> Crops:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image, np.uint8)


FILES = {
    "png": encoded("PNG"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "webp": encoded("WEBP"),
    **{f"jpeg {n}": encoded("JPEG", quality=90, subsampling=n) for n in (0, 1, 2)},
    "progressive jpeg": encoded("JPEG", progressive=True),
    "grey jpeg": encoded("JPEG", "L"),
    "CMYK jpeg": encoded("JPEG", "CMYK"),
    **{f"{mode} png": encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGBA")},
    "palette with transparency": encoded("PNG", "P", transparency=3),
    "RGBA tiff": encoded("TIFF", "RGBA"),
    "grey of 16 bits": bytes(cv2.imencode(".png", DEEP[..., 0])[1]),
    "grey tiff of 16 bits": bytes(cv2.imencode(".tiff", DEEP[..., 0])[1]),
    "colour of 16 bits": bytes(cv2.imencode(".png", DEEP)[1]),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_every_format_has_the_pixels_that_opencv_reads(content: bytes) -> None:
    np.testing.assert_array_equal(read_crop(content), as_opencv(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_rotation_of_a_camera_is_applied_as_opencv_does(kind: str) -> None:
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(kind, exif=exif)
        np.testing.assert_array_equal(read_crop(content), as_opencv(content), f"orientation {orientation}")


def with_exif(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A JPEG that is turned, with further EXIF entries: tag, type, count, value."""
    block = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, 1 + len(entries))
    block += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    return block + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries) + bytes(40)


def in_jpeg(exif: bytes) -> bytes:
    plain, payload = encoded("JPEG"), b"Exif\0\0" + exif
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]


ODD_TAGS = (0x010F, 0x0111, 0x011A, 0x0128, 0x0132, 0x02BC, 0x8769, 0x8825, 0x927C, 0xA005)


def test_odd_or_damaged_exif_never_raises_and_turns_as_opencv_does() -> None:
    blocks = [
        with_exif((tag, kind, count, value), order=order)
        for tag in ODD_TAGS
        for kind, count, value in ((2, 1, 8), (5, 0, 26), (12, 1000, 60), (0, 0xFFFFFFFF, 0xFFFFFFFF))
        for order in "<>"
    ]
    chance = random.Random(0)
    for _ in range(300):
        damaged = bytearray(with_exif((0x8769, 4, 1, 38)))
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        blocks.append(bytes(damaged[: chance.randrange(6, 2 * len(damaged))]))
    for block in blocks:
        content = in_jpeg(block)
        np.testing.assert_array_equal(read_crop(content), as_opencv(content), block.hex())


def test_another_size_is_refused_unless_resized(tmp_path: Path) -> None:
    Image.new("RGB", (50, 80)).save(tmp_path / "crop.png")
    with pytest.raises(
        ImageFileError, match=r"is 50x80; expected an aligned crop of 112x112\. Align it with .* --resize\.$"
    ):
        read_crop(tmp_path / "crop.png")
    assert read_crop(tmp_path / "crop.png", resize=True).shape == (112, 112, 3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"not an image", "its format is unknown"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, ""),
        (encoded("PNG")[:5000], ""),
        (encoded("TIFF", "F"), "it has 32 bits a pixel"),
        (bytes(cv2.imencode(".tiff", PIXELS)[1])[:9000], ""),
    ],
    ids=["empty", "text", "zeros", "truncated", "32 bits", "truncated tiff"],
)
def test_a_file_that_is_not_an_image_of_bytes_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "crop.png").write_bytes(content)
    for image, name in ((tmp_path / "crop.png", r"crop\.png"), (content, "the image")):
        with pytest.raises(ImageFileError, match=f"{name} cannot be read as an image: {why}"):
            read_crop(image)


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked.png").symlink_to("nowhere.png")
    (tmp_path / "folder").symlink_to("deep")
    found = list(search(str(tmp_path)))
    names = [str(Path(file).relative_to(tmp_path)) for file in found]
    assert names == ["a.PNG", "b.jpg", "linked.png", "deep/c.webp"]
    with pytest.raises(ImageFileError, match=r"linked\.png cannot be read as an image: .*No such file"):
        read_crop(found[2])
