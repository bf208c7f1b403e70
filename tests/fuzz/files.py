"""Parsers of networks, images, galleries and lists of crops."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from PIL import Image

from arcface_builder.build import build
from arcface_builder.errors import (
    CheckpointError,
    CompileError,
    NotArcFaceError,
    NotOnnxError,
)
from arcface_builder.source.checkpoint import read_checkpoint
from arcface_builder.source.inspect import inspect
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_file import read_onnx
from arcface_builder.trt.inspect import layer_precisions
from arcface_client.backends.insightface import SourceRuntime, recognition_models, source_sha256
from arcface_client.bulk.decode import decode
from arcface_client.bulk.ids import IdSet
from arcface_client.bulk.source import open_source
from arcface_client.errors import (
    DeploymentError,
    ImageFileError,
    InputError,
    PairFileError,
    SourceUnavailableError,
)
from arcface_client.evaluation.images import read_crop
from arcface_client.evaluation.pairs import read_pair_file
from arcface_client.gallery import METADATA_KEY, GalleryInfo, gallery_table, open_gallery, write_gallery
from arcface_client.models.embedding_space import EmbeddingSpace
from arcface_client.models.golden import golden_crops
from arcface_client.runtimes.cudnn.reader import read_network
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_session
from fuzz.damage import damaged_network
from fuzz.parsers import Parser, Parsers, Place, of_file, of_text
from support.exports import bytes_channels_last, small_arcface
from support.image_files import encoded
from support.pair_files import PYTHON_2_TEXT, as_opencv
from support.tiny import tiny_serving_graph

PARSERS: Final = Parsers()


# Networks.


def with_weights_beside(model: onnx.ModelProto, folder: Path) -> bytes:
    """A file with the structure alone, so that damage is seldom in a weight."""
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=64
    )
    return (folder / "model.onnx").read_bytes()


@PARSERS.add()
def onnx_file(at: Place) -> Parser:
    good = tiny_serving_graph(dim=8).SerializeToString()
    return Parser(good, of_file(read_onnx, at.folder / "model.onnx"), NotOnnxError, damage=damaged_network)


@PARSERS.add()
def onnx_file_with_weights_beside(at: Place) -> Parser:
    good = with_weights_beside(small_arcface(channels=1), at.folder)
    return Parser(
        good,
        of_file(inspect, at.folder / "model.onnx"),
        (NotOnnxError, NotArcFaceError),
        damage=damaged_network,
    )


@PARSERS.add()
def weights_beside_an_onnx_file(at: Place) -> Parser:
    with_weights_beside(small_arcface(channels=1), at.folder)
    file = at.folder / "weights"
    return Parser(
        file.read_bytes(), of_file(lambda _: read_onnx(at.folder / "model.onnx"), file), NotOnnxError
    )


@PARSERS.add()
def cudnn_network(at: Place) -> Parser:
    onnx.save_model(small_arcface(channels=32), at.folder / "source.onnx")
    served = (
        build(OnnxFile(at.folder / "source.onnx"), name="small", repository=at.folder).path / "model.onnx"
    )
    good = with_weights_beside(onnx.load_model(served), at.folder)
    return Parser(
        good, of_file(read_network, at.folder / "model.onnx"), DeploymentError, damage=damaged_network
    )


@PARSERS.add()
def onnx_runtime(at: Place) -> Parser:
    def read(path: Path) -> None:
        OnnxRuntime(path).embed(golden_crops()[:1])

    good = tiny_serving_graph(dim=8).SerializeToString()
    return Parser(good, of_file(read, at.folder / "model.onnx"), DeploymentError, damage=damaged_network)


@PARSERS.add()
def reference(at: Place) -> Parser:
    def read(path: Path) -> None:
        SourceRuntime(path, open_session(path, as_it_is=True)).embed(golden_crops()[:1])

    good = with_weights_beside(bytes_channels_last(small_arcface(channels=1)), at.folder)
    return Parser(good, of_file(read, at.folder / "model.onnx"), DeploymentError, damage=damaged_network)


@PARSERS.add()
def insightface_pack(at: Place) -> Parser:
    good = with_weights_beside(small_arcface(channels=1), at.folder)
    read = of_file(
        lambda path: (recognition_models(at.folder), source_sha256(path)), at.folder / "model.onnx"
    )
    return Parser(good, read, DeploymentError, False, damaged_network)


@PARSERS.add()
def checkpoint(at: Place) -> Parser:
    stages = [f"layer{stage}.{block}." for stage in (1, 2, 3, 4) for block in (0, 1)]
    tensors = {f"module.{name}prelu.weight": np.ones(4, np.float32) for name in stages}

    def read(path: Path) -> None:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            if "is not a state dict of an IResNet r18" not in str(error):  # a whole one has 96 MB
                raise

    return Parser(
        safetensors.numpy.save(tensors), of_file(read, at.folder / "m.safetensors"), CheckpointError
    )


@PARSERS.add()
def inspector(_: Place) -> Parser:
    layer = {
        "Name": "conv1 [profile 1]",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "image", "Format/Datatype": "Half"}],
        "Weights": {"Type": "Half", "Count": 1},
    }
    return Parser(json.dumps({"Layers": [layer]}).encode(), of_text(layer_precisions), CompileError)


# Crops, and lists of them.


def image(kind: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((112, 112)).save(file, kind, **options)
    return file.getvalue()


@PARSERS.add("PNG", "JPEG", "turned JPEG", "BMP", "WEBP", "TIFF", "GIF")
def crop(kind: str, _: Place) -> Parser:
    def read(data: bytes) -> None:
        assert read_crop(data, resize=len(data) % 2 == 0).shape == (112, 112, 3)

    exif = Image.Exif()
    exif[0x0112] = 6
    good = image("JPEG", exif=exif) if kind == "turned JPEG" else image(kind)
    return Parser(good, read, ImageFileError)


@PARSERS.add("2", "4", "numpy", "Python 2")
def pair_file(form: str, at: Place) -> Parser:
    crops, same = [image("JPEG"), image("PNG")] * 2, [True, False]
    good = {
        "2": lambda: pickle.dumps((crops, same), 2),
        "4": lambda: pickle.dumps((crops, same), 4),
        "numpy": lambda: pickle.dumps((as_opencv(crops), np.array(same)), 4),
        "Python 2": PYTHON_2_TEXT.read_bytes,
    }
    return Parser(good[form](), of_file(read_pair_file, at.folder / "pairs.bin"), PairFileError)


def gallery_info() -> GalleryInfo:
    space = EmbeddingSpace(source_sha256="a1" * 32, preprocessing="RGB", precision_class="float")
    return GalleryInfo(space=space, dim=8, model="m", version=1, command="c")


@PARSERS.add("parquet", "npz")
def gallery(ending: str, at: Place) -> Parser:
    path, rows, info = at.folder / f"gallery.{ending}", np.eye(4, 8, dtype=np.float32), gallery_info()
    if ending == "npz":
        np.savez(path, paths=np.array(list("abcd")), embeddings=rows, version="1", tools="{}")
    else:
        write_gallery(path, info, [gallery_table(info, list("abcd"), rows, ["r"] * 4, [None] * 4)])

    def read(file: Path) -> object:
        found = open_gallery(file)
        return str(found.info), found.load(), list(found.failed())

    return Parser(path.read_bytes(), of_file(read, path), InputError)


@PARSERS.add()
def gallery_metadata(_: Place) -> Parser:
    schema = gallery_info().schema()

    def read(data: bytes) -> str:
        return str(GalleryInfo.read(schema.with_metadata({METADATA_KEY: data})))

    return Parser(schema.metadata[METADATA_KEY], read, InputError)


@PARSERS.add("paths", "embeddings", "version")
def member_of_npz(name: str, at: Place) -> Parser:
    """Damage that the archive's check sums do not show."""
    values = {
        "paths": np.array(list("abcd")),
        "embeddings": np.eye(4, 8, dtype=np.float32),
        "version": np.array("1"),
    }

    def npy(name: str) -> bytes:
        file = io.BytesIO()
        np.save(file, values[name])
        return file.getvalue()

    def read(data: bytes) -> None:
        with zipfile.ZipFile(at.folder / "gallery.npz", "w") as archive:
            for other in values:
                archive.writestr(f"{other}.npy", data if other == name else npy(other))
        open_gallery(at.folder / "gallery.npz").load()

    return Parser(npy(name), read, InputError)


def table(_: Path) -> bytes:
    file = io.BytesIO()
    crops = [encoded(crop) for crop in golden_crops()[:2]]
    pq.write_table(
        pa.table({"id": ["a", "b"], "image": [{"bytes": crop, "path": None} for crop in crops]}), file
    )
    return file.getvalue()


def tar(mode: str, _: Path) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for number, content in enumerate((image("JPEG"), image("PNG"))):
            member = tarfile.TarInfo(f"{number:0120}.jpg")  # of a long name, in a header of its own
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def paths(folder: Path) -> bytes:
    (folder / "a.jpg").write_bytes(image("JPEG"))
    return b"a.jpg\nsub/b.png\n../c.png\n"


SOURCES: Final[Mapping[str, Callable[[Path], bytes]]] = {
    "crops.parquet": table,
    "crops.tar": partial(tar, "w"),
    "crops.tar.gz": partial(tar, "w:gz"),
    "crops.txt": paths,
}


@PARSERS.add(*SOURCES)
def source(name: str, at: Place) -> Parser:
    info, numbers = gallery_info(), np.zeros((0, 8), np.float32)

    def read(path: Path) -> None:
        decoded = decode(list(open_source([str(path)]).items()))
        IdSet().add(decoded.ids)
        rows = np.resize(numbers, (len(decoded.ids), 8))
        gallery_table(info, decoded.ids, rows, [None] * len(rows), decoded.errors)

    return Parser(
        SOURCES[name](at.folder), of_file(read, at.folder / name), (InputError, SourceUnavailableError), False
    )
