"""Damaged input of every parser of outside data: it is read, or refused by the parser's own error."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import model_config_pb2

from arcface_builder.build import build
from arcface_builder.errors import BucketError, NotOnnxError, RepositoryError
from arcface_builder.repository.config import config_text, read_config
from arcface_builder.repository.remote import read_index
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_file import read_onnx
from arcface_client.errors import ConfigError, ImageFileError, InputError, ManifestError, PairFileError
from arcface_client.evaluation.images import read_crop
from arcface_client.evaluation.pairs import read_pair_file
from arcface_client.failover.discovery import Pin
from arcface_client.gallery import GalleryInfo, gallery_table, open_gallery, write_gallery
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.manifest import ModelManifest
from arcface_client.models.plan_manifest import PlanManifest
from arcface_client.runtimes.base import read_device
from arcface_client.settings import load_pipeline_settings
from support.engines import manifest
from support.exports import save_for_insightface, small_arcface

INPUTS = int(os.environ.get("FUZZ_INPUTS", "150"))
"""`make fuzz` sets 100,000."""

TOKENS = (
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"1" * 400,
        b"[]",
        b"{}",
        b"[" * 200,
        b'""',
        b'"\\ud800"',
    ),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b": &a [*a]",
        b"!!python/object:os.system",
        b"\n- ",
        b"'",
        b"%s",
        b"../",
    ),
)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """A copy that is cut, doubled, spliced or changed in some places."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                data[start:end] = chance.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end]
            case 3:
                data[start:end] = chance.choice(TOKENS)
            case 4:
                del data[max(start, len(data) // 2) :]
    return bytes(data)


def image(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((112, 112)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def model_manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("built")
    build(OnnxFile(save_for_insightface(folder)), name="small", repository=folder / "models")
    return (folder / "models/small_onnx-1.manifest.json").read_bytes()


def no_damage(parse: Callable[[bytes], object], error: type[Exception], good: bytes, name: str) -> None:
    """Check that the good input is read, and each damaged one read or refused."""
    parse(good)
    seed = random.randrange(2**32) if "FUZZ_INPUTS" in os.environ else 0
    refused = 0
    for number in range(INPUTS):
        data = damaged(good, random.Random(f"{name} {seed} {number}"))
        try:
            parse(data)
        except error as refusal:
            refused += 1
            assert str(refusal)
        except BaseException as other:
            raise AssertionError(f"{name}: {data!r} raised {other!r}") from other
    assert refused > INPUTS // 20, "the damage is seen"


def in_file(read: Callable[[Path], object], path: Path, data: bytes) -> object:
    path.write_bytes(data)
    return read(path)


@pytest.mark.timeout(0)
def test_a_damaged_manifest_is_refused(model_manifest: bytes) -> None:
    no_damage(partial(ModelManifest.parse, where="m"), ManifestError, model_manifest, "model")
    no_damage(partial(PlanManifest.parse, where="m"), ManifestError, manifest().to_json().encode(), "plan")


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about odd tags beside the pixels
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
def test_a_damaged_image_is_refused(kind: str) -> None:
    def read(data: bytes) -> None:
        assert read_crop(data).shape == (112, 112, 3)

    no_damage(read, ImageFileError, image(kind), kind)


@pytest.mark.timeout(0)
def test_a_damaged_verification_set_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    crops = [image("JPEG"), image("PNG")] * 2
    for protocol in (2, 4):
        good = pickle.dumps((crops, [True, False]), protocol)
        no_damage(
            partial(in_file, read_pair_file, tmp_path / "pairs.bin"),
            PairFileError,
            good,
            f"pickle {protocol}",
        )


@pytest.mark.timeout(0)
def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    good = (Path(__file__).parents[2] / "config/pipeline/embedding.yaml").read_bytes()
    read = partial(load_pipeline_settings, environment={})
    no_damage(partial(in_file, read, tmp_path / "embedding.yaml"), ConfigError, good, "settings")


@pytest.mark.timeout(0)
def test_damaged_names_are_refused() -> None:
    def text(parse: Callable[[str], object], data: bytes) -> object:
        return parse(data.decode(errors="replace"))

    no_damage(partial(text, Pin.parse), ConfigError, b"arcface_r100_trt:3", "pin")
    no_damage(partial(text, read_device), InputError, b"cuda:1", "device")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_a_damaged_gallery_is_refused(tmp_path: Path, ending: str) -> None:
    path, rows = tmp_path / f"gallery.{ending}", np.eye(4, 8, dtype=np.float32)
    space = EmbeddingSpace(source_sha256="a1" * 32, preprocessing="RGB", precision_class="float")
    info = GalleryInfo(space=space, dim=8, model="m", version=1, command="c")
    if ending == "npz":
        np.savez(path, paths=np.array(list("abcd")), embeddings=rows, version="1", tools="{}")
    else:
        write_gallery(path, info, [gallery_table(info, list("abcd"), rows, ["r"] * 4, [None] * 4)])
    read = partial(in_file, lambda file: open_gallery(file).load(), path)
    no_damage(read, InputError, path.read_bytes(), ending)


@pytest.mark.timeout(0)
def test_damaged_files_of_a_repository_are_refused(tmp_path: Path) -> None:
    file = {"path": "small_onnx/1/model.onnx", "sha256": "0" * 64, "size": 1}
    index = json.dumps({"files": [file]}).encode()
    no_damage(partial(read_index, where="index"), BucketError, index, "index")
    config = config_text(model_config_pb2.ModelConfig(name="m", backend="b", max_batch_size=8))
    no_damage(
        partial(in_file, read_config, tmp_path / "config.pbtxt"), RepositoryError, config.encode(), "config"
    )


@pytest.mark.timeout(0)
def test_a_damaged_onnx_file_is_refused(tmp_path: Path) -> None:
    good = small_arcface(channels=8).SerializeToString()
    no_damage(partial(in_file, read_onnx, tmp_path / "model.onnx"), NotOnnxError, good, "ONNX")
