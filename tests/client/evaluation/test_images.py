import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcface_client.cli.output import EmbeddingArchive
from arcface_client.errors import ImageFileError, InputError
from arcface_client.evaluation.images import PassedOver, find_images, read_crop

PIXELS = np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8)


def test_a_png_gives_its_pixels_in_bgr(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "crop.png")
    np.testing.assert_array_equal(read_crop(tmp_path / "crop.png"), PIXELS[..., ::-1])


def test_a_camera_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see it
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


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "crop.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"crop\.png cannot be read as an image"):
        read_crop(tmp_path / "crop.png")


def test_grey_of_sixteen_bits_is_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((112, 112), 40000, np.uint16)).save(tmp_path / "crop.png")
    with pytest.raises(
        ImageFileError, match=r"is grey with more than 8 bits a pixel \(Pillow's mode I(;16)?\)"
    ):
        read_crop(tmp_path / "crop.png")


def test_colours_of_sixteen_bits_become_their_upper_eight(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 2**16, (112, 112, 3), np.uint16)
    header = struct.pack(">2I5B", 112, 112, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)  # each begins with its filter: none
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    (tmp_path / "crop.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    np.testing.assert_array_equal(read_crop(tmp_path / "crop.png"), (rgb >> 8)[..., ::-1])


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "crop.png")
    whole = (tmp_path / "crop.png").read_bytes()
    (tmp_path / "crop.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageFileError, match="cannot be read as an image"):
        read_crop(tmp_path / "crop.png")


def test_folders_are_searched_in_order_and_files_taken_as_named(tmp_path: Path) -> None:
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


def test_links_to_files_are_followed_and_links_to_folders_counted(tmp_path: Path) -> None:
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


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="There is no file or folder"):
        list(find_images([tmp_path / "none"]))


def test_an_archive_holds_what_was_added(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    with EmbeddingArchive(tmp_path / "out.npz") as archive:
        archive.add(["a", "b"], rows[:2])
        archive.add(["c", "d", "é" * 30], rows[2:])
    with np.load(tmp_path / "out.npz") as loaded:
        np.testing.assert_array_equal(loaded["embeddings"], rows)
        assert loaded["paths"].tolist() == ["a", "b", "c", "d", "é" * 30]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_an_empty_archive_can_be_loaded(tmp_path: Path) -> None:
    with EmbeddingArchive(tmp_path / "out.npz"):
        pass
    with np.load(tmp_path / "out.npz") as loaded:
        assert loaded["embeddings"].shape == (0, 512)
        assert loaded["paths"].shape == (0,)


def test_an_error_leaves_the_old_archive_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_bytes(b"old")
    with pytest.raises(RuntimeError), EmbeddingArchive(tmp_path / "out.npz") as archive:
        archive.add(["a"], np.zeros((1, 512), np.float32))
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.npz", b"old")]


def test_an_archive_that_is_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give the name of a file"):
        EmbeddingArchive(tmp_path)


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"is no regular file"):
        EmbeddingArchive(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"is no regular file"):
        EmbeddingArchive(Path(os.devnull))


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link.npz").symlink_to("data/real.npz")
    with EmbeddingArchive(tmp_path / "link.npz") as archive:
        archive.add(["a"], np.zeros((1, 512), np.float32))
    assert (tmp_path / "link.npz").is_symlink()
    with np.load(tmp_path / "data/real.npz") as loaded:
        assert loaded["paths"].tolist() == ["a"]


def test_an_archive_in_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        EmbeddingArchive(tmp_path / "none" / "out.npz")


def test_a_pipe_with_the_name_of_an_image_is_passed_over(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")

    assert list(find_images([tmp_path])) == [str(tmp_path / "a.png")]
