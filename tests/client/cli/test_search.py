"""``arcface-client search``: from an image file to the nearest faces of a gallery, with the real model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arcface_client import get_embedding_backend
from arcface_client.cli.app import main
from arcface_client.contract import Crops, Embeddings
from arcface_client.gallery import GalleryInfo, gallery_table, write_gallery
from arcface_client.models.embedding_space import EmbeddingSpace
from support.browser import CHROMIUM, show
from support.image_files import encoded, save_crops

FLAGS = ["--backend", "onnxruntime"]


@pytest.fixture
def folder(tmp_path: Path, crops: Crops, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``crops/``, ``gallery.parquet`` of them, and ``face.png``, which is nearly the third of them."""
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL_REPOSITORY", str(built / "models"))
    save_crops(tmp_path / "crops", crops[:8], "{}.png")
    (tmp_path / "face.png").write_bytes(encoded(np.roll(crops[3], 1, axis=0)))
    with get_embedding_backend("onnxruntime", embedding_model="small") as backend:
        embeddings = backend.encode(crops[:8])
        info = GalleryInfo(
            space=backend.space(),
            dim=embeddings.shape[1],
            model="small_onnx",
            version=1,
            job={"sources": [str(tmp_path / "crops")]},
        )
    write(tmp_path / "gallery.parquet", info, embeddings)
    return tmp_path


def write(path: Path, info: GalleryInfo, embeddings: Embeddings) -> None:
    names, nothing = [f"{index}.png" for index in range(len(embeddings))], [None] * len(embeddings)
    write_gallery(path, info, [gallery_table(info, names, embeddings, nothing, nothing)])


def test_search_shows_the_nearest_faces_of_each_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, images = str(folder / "gallery.parquet"), [str(folder / "crops/3.png"), str(folder / "face.png")]
    assert main(["search", gallery, *images, "--top", "3", "--json", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [query["image"] for query in found["queries"]] == images
    assert (found["rows"], found["model"], found["version"]) == (8, "small_onnx", 1)
    first = found["queries"][0]["matches"]
    assert (first[0]["id"], first[0]["similarity"]) == ("3.png", pytest.approx(1, abs=1e-5))
    assert len(first) == 3
    assert first[1]["similarity"] >= first[2]["similarity"]

    assert main(["search", gallery, images[0], *FLAGS]) == 0
    heading, best, *others = capsys.readouterr().out.splitlines()
    assert heading.split() == [images[0], "similarity", "id"]
    assert best.split() == ["1", "1.0000", "3.png"]
    assert len(others) == 7


def test_a_gallery_of_another_space_is_refused_and_both_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder / "other.parquet"
    info = GalleryInfo(space=EmbeddingSpace(source_sha256="ab" * 32), dim=512, model="small_onnx", version=7)
    write(other, info, np.eye(2, 512, dtype=np.float32))
    assert main(["search", str(other), str(folder / "face.png"), *FLAGS]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "other.parquet is by small_onnx:7 of source SHA-256 abababababab..." in said
    assert "the query by small_onnx:1 of source SHA-256" in said


@pytest.mark.parametrize(
    ("gallery", "face", "said"),
    [
        ("missing.parquet", "face.png", "There is no gallery"),
        ("face.png", "face.png", "cannot be read as Parquet"),
        ("gallery.parquet", "missing.png", "cannot be read as an image"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    folder: Path, gallery: str, face: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(folder / gallery), str(folder / face), *FLAGS]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_page_has_the_crops_that_are_still_in_the_source(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "crops/5.png").unlink()
    page = folder / "found.html"
    flags = ["--html", str(page), *FLAGS]
    assert main(["search", str(folder / "gallery.parquet"), str(folder / "face.png"), *flags]) == 0
    told = capsys.readouterr().err
    assert f"Crops that were not found in {folder}/crops: 1. The page has no pictures of them" in told
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 1 + 7
    assert html.count("<figcaption>") == 1 + 8
    assert "by small_onnx:1 of source SHA-256" in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_stands_alone_and_fits_a_phone(folder: Path) -> None:
    page = folder / "found.html"
    flags = ["--html", str(page), *FLAGS]
    assert main(["search", str(folder / "gallery.parquet"), str(folder / "face.png"), *flags]) == 0
    seen = show(page, folder / "profile")
    assert "Nearest faces" in seen.text
    assert (seen.requests, seen.complaints) == ([], [])
    assert seen.width <= 390
