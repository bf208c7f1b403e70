"""Reading ONNX files: weights in other files, and what ONNX Runtime takes and other tools do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data, set_external_data

from arcface_builder.build import build
from arcface_builder.errors import NotOnnxError
from arcface_builder.graph.edit import session
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.onnx_file import read_onnx
from support.exports import small_arcface

IMAGE = np.random.RandomState(0).standard_normal((1, 3, 112, 112)).astype(np.float32)


def embedding(model: onnx.ModelProto) -> bytes:
    """What a model makes of one image, to the last bit."""
    return session(model.SerializeToString()).run(None, {"data": IMAGE})[0].tobytes()  # type: ignore[no-any-return]


def with_external_data(folder: Path, seed: int = 0) -> Path:
    """Save a model with all weights in ``model.onnx.data``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = small_arcface(seed)
    convert_model_to_external_data(model, location="model.onnx.data", size_threshold=0)
    onnx.save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def in_hugging_faces_cache(folder: Path) -> Path:
    """Both files as links to files that are named by their SHA-256."""
    snapshot = folder / "snapshots/8f9a"
    snapshot.mkdir(parents=True)
    with_external_data(folder / "blobs")
    for name in ("model.onnx", "model.onnx.data"):
        (folder / "blobs" / name).rename(folder / "blobs" / f"sha-of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/sha-of-{name}")
    return snapshot / "model.onnx"


def with_hard_links(folder: Path) -> Path:
    path = with_external_data(folder / "original")
    (folder / "linked").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        os.link(path.with_name(name), folder / "linked" / name)
    return folder / "linked/model.onnx"


def behind_one_link(folder: Path) -> Path:
    """A link to the model alone; the data is where the model really is."""
    path = with_external_data(folder / "original")
    (folder / "link.onnx").symlink_to(path)
    return folder / "link.onnx"


@pytest.mark.parametrize(
    "layout", [with_external_data, in_hugging_faces_cache, with_hard_links, behind_one_link]
)
def test_weights_in_another_file_are_read_also_behind_links(
    layout: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = layout(tmp_path / "hub")

    built = build(OnnxFile(path), name="m", repository=tmp_path / "models")

    assert embedding(read_onnx(path)[0]) == embedding(small_arcface())
    assert built.manifest.compared_with == "source file"


def test_other_weights_in_the_external_file_make_another_source(tmp_path: Path) -> None:
    first, second = (read_onnx(with_external_data(tmp_path / str(seed), seed)) for seed in (0, 1))

    assert (tmp_path / "0/model.onnx").read_bytes() == (tmp_path / "1/model.onnx").read_bytes()
    assert first[1] != second[1]


@pytest.mark.parametrize("location", ["../secret.bin", "inner/../../secret.bin", "/etc/hostname"])
def test_a_model_cannot_read_files_outside_its_folder(location: str, tmp_path: Path) -> None:
    path = with_external_data(tmp_path / "model")
    (tmp_path / "model/model.onnx.data").rename(tmp_path / "secret.bin")
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.raw_data = b"0"  # set_external_data wants bytes to move
        set_external_data(tensor, location)
        tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())

    with pytest.raises(NotOnnxError, match=f"keeps weights in {location}, outside its own folder"):
        read_onnx(path)


def remove(data: Path) -> None:
    data.unlink()


def cut_short(data: Path) -> None:
    os.truncate(data, data.stat().st_size - 100)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove, r"model\.onnx\.data cannot be read \(No such file or directory\); fetch both"),
        (
            cut_short,
            r"model\.onnx\.data \([\d,]+ bytes\) is cut short: weight 'features\.var' of model\.onnx ends",
        ),
    ],
)
def test_weights_that_are_missing_or_cut_short_are_told(
    harm: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = with_external_data(tmp_path)
    harm(tmp_path / "model.onnx.data")

    with pytest.raises(NotOnnxError, match=message):
        read_onnx(path)


def test_a_length_that_is_not_the_tensors_is_refused(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    model = onnx.load_model(path, load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "length")
    entry.value = str(int(entry.value) - 4)
    path.write_bytes(model.SerializeToString())

    with pytest.raises(NotOnnxError, match=r"weight 'conv1\.weight' is wrong \(860 bytes instead of 864\)"):
        read_onnx(path)


def nodes_out_of_order(model: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def unnamed_graph(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def weight_twice(model: onnx.ModelProto) -> None:
    """ONNX Runtime takes the first."""
    again = onnx.TensorProto.FromString(model.graph.initializer[0].SerializeToString())
    again.raw_data = bytes(len(again.raw_data))
    model.graph.initializer.append(again)


def domain_in_full(model: onnx.ModelProto) -> None:
    for part in (*model.opset_import, *model.graph.node):
        part.domain = "ai.onnx"


@pytest.mark.parametrize("spelling", [nodes_out_of_order, unnamed_graph, weight_twice, domain_in_full])
def test_what_onnx_runtime_takes_and_onnxs_checker_does_not_is_built(
    spelling: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = small_arcface()
    spelling(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    read, _ = read_onnx(tmp_path / "model.onnx")
    build(OnnxFile(tmp_path / "model.onnx"), name="m", repository=tmp_path / "models")

    onnx.checker.check_model(read)
    assert embedding(read) == embedding(small_arcface())
