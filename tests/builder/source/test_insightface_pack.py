from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from arcface_builder.cli.app import main
from arcface_builder.errors import PackError
from arcface_builder.source.insightface_pack import recognition_model
from arcface_builder.source.load import InsightFacePack
from support.exports import pytorch_pack, small_arcface


def detector() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input.1"], ["448"])],
        "detector",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "?", "?"])],
        [helper.make_tensor_value_info("448", TensorProto.FLOAT, [1, 3, "?", "?"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


@pytest.fixture
def make_pack(tmp_path: Path) -> Callable[..., Path]:
    def make(folder: str, **files: onnx.ModelProto) -> Path:
        (tmp_path / "models" / folder).mkdir(parents=True, exist_ok=True)
        for name, model in files.items():
            onnx.save_model(model, tmp_path / "models" / folder / f"{name}.onnx")
        return tmp_path

    return make


def test_the_recognition_model_is_found_by_its_signature_not_its_name(
    make_pack: Callable[..., Path],
) -> None:
    root = make_pack("buffalo_l", w600k_r50=detector(), det_10g=pytorch_pack(small_arcface()))

    assert recognition_model("buffalo_l", root=root).name == "det_10g.onnx"


def test_a_pack_in_a_nested_folder_is_found(make_pack: Callable[..., Path]) -> None:
    root = make_pack("antelopev2/antelopev2", glintr100=small_arcface(), scrfd=detector())

    source = InsightFacePack("antelopev2", root).load()

    assert source.origin.name == "glintr100.onnx"
    assert source.origin.terms is not None
    assert "non-commercial" in source.origin.terms


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"det_10g": detector()}, r"has 0 recognition models \(none\); expected one"),
        ({"a": small_arcface(), "b": small_arcface()}, r"has 2 recognition models \(a.onnx, b.onnx\)"),
    ],
    ids=["none", "two"],
)
def test_a_pack_without_exactly_one_recognition_model_is_refused(
    files: dict[str, onnx.ModelProto], message: str, make_pack: Callable[..., Path]
) -> None:
    root = make_pack("mine", **files)

    with pytest.raises(PackError, match=message):
        recognition_model("mine", root=root)


def test_a_missing_pack_is_not_downloaded_unless_its_terms_are_accepted(tmp_path: Path) -> None:
    with pytest.raises(
        PackError, match="non-commercial research only; if that fits your use, add --accept-license"
    ):
        recognition_model("buffalo_l", root=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens there, so the real download fails as it does without a network.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    with pytest.raises(
        PackError, match=r"Cannot download buffalo_l \(ProxyError\)\. Fetch https://.*buffalo_l\.zip"
    ):
        recognition_model("buffalo_l", root=tmp_path, accept_license=True)

    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that has the pack; the rest is InsightFace's own code."""

    def download_file(url: str, path: str, overwrite: bool) -> None:
        assert url.endswith("buffalo_l.zip")
        Path(path).parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w600k_r50.onnx", pytorch_pack(small_arcface()).SerializeToString())

    monkeypatch.setattr("insightface.utils.storage.download_file", download_file)


@pytest.mark.usefixtures("download")
def test_a_downloaded_pack_is_built_and_standard_output_stays_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--insightface-root", str(tmp_path), "--accept-license"]
    models = str(tmp_path / "repository")

    command = ["build", "--name", "m", "--repository", models, "--insightface-pack", "buffalo_l", *root]
    assert main([*command, "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert (report["source"]["kind"], report["source"]["name"]) == ("insightface", "w600k_r50.onnx")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["buffalo_l"]


@pytest.mark.usefixtures("download")
def test_a_folder_with_the_users_files_is_never_removed(tmp_path: Path) -> None:
    notes = tmp_path / "models/buffalo_l/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")

    with pytest.raises(PackError, match="Directory not empty"):
        recognition_model("buffalo_l", root=tmp_path, accept_license=True)

    assert notes.read_text() == "mine"
