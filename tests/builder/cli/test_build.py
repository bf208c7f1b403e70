from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from arcface_builder.cli.app import main
from arcface_builder.source.load import (
    Checkpoint,
    InsightFacePack,
    OnnxFile,
    Source,
    Synthetic,
    build_arguments,
    located,
)
from arcface_client.models.normalisation import PYTORCH, UNIT, Normalisation
from support.exports import mxnet_broken, pytorch_pack, small_arcface


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.onnx"
    onnx.save_model(pytorch_pack(small_arcface()), path)
    return path


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Source]:
    """The source that arguments of the command name."""

    class Asked(Exception):
        pass

    def ask(arguments: list[str]) -> Source:
        sources: list[Source] = []

        def note(source: Source, **_: object) -> None:
            sources.append(source)
            raise Asked

        with monkeypatch.context() as patch, pytest.raises(Asked):
            patch.setattr("arcface_builder.cli.build.build_model", note)
            main(["build", "--name", "m", *arguments])
        return sources[0]

    return ask


def arguments(source: Path, *more: str) -> list[str]:
    folder = str(source.parent / "models")
    return ["build", "--name", "small", "--repository", folder, "--onnx-path", str(source), *more]


def test_the_manifest_has_the_source_the_file_and_the_comparison(source: Path) -> None:
    assert main(arguments(source)) == 0

    models = source.parent / "models"
    manifest = json.loads((models / "small_onnx-1.manifest.json").read_text())
    served = (models / "small_onnx/1/model.onnx").read_bytes()
    assert manifest["schema_version"] == 1
    assert manifest["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["model_file"]["sha256"] == hashlib.sha256(served).hexdigest()
    assert manifest["preprocessing"]["mean"] == [127.5] * 3
    assert manifest["parity"]["max_abs_difference"] <= 1e-5
    assert "the output's batch dimension is fixed to 1: it becomes 'N'" in manifest["repairs"]


def test_the_rebuild_command_builds_the_same_file_again(source: Path) -> None:
    assert main(arguments(source, "--instances", "2", "--device", "cpu")) == 0
    models = source.parent / "models"
    manifest = json.loads((models / "small_onnx-1.manifest.json").read_text())

    program, *rebuild = shlex.split(manifest["rebuild_command"])

    assert program == "arcface-builder"
    assert main(rebuild) == 0
    first, second = ((models / f"small_onnx/{version}/model.onnx").read_bytes() for version in (1, 2))
    assert first == second
    assert " --device cpu --instances 2" in manifest["rebuild_command"]
    config = (models / "small_onnx/config.pbtxt").read_text()
    assert "count: 2" in config
    assert "KIND_CPU" in config


def test_it_prints_one_line_or_json(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(source)) == 0
    assert capsys.readouterr().out.startswith("small_onnx version 1 in ")

    assert main(arguments(source, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["version"]) == ("small_onnx", 2)
    assert report["path"].endswith("small_onnx/2")
    assert "embeddings" not in report["golden"]
    written = json.loads((source.parent / "models/small_onnx-2.manifest.json").read_text())
    assert written["golden"]["embeddings"]


def test_a_stated_normalisation_is_what_the_graph_does(source: Path) -> None:
    assert main(arguments(source, "--normalisation", "127.5,128")) == 0

    manifest = json.loads((source.parent / "models/small_onnx-1.manifest.json").read_text())
    assert manifest["preprocessing"]["std"] == [128] * 3
    assert manifest["preprocessing"]["found_in"] == "the command line"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--onnx-path", "missing.onnx"], "Cannot read missing.onnx"),
        (["--name", "a/b"], "Model name 'a/b' cannot be used"),
        (["--name", "small_onnx"], "'small_onnx' is the name of a model; expected the name"),
        (["--instances", "0"], "instances is 0; expected 1 to 64"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    change: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(source, *change)) == 1

    assert capsys.readouterr().err.splitlines()[-1].startswith(f"arcface-builder: {message}")
    assert not (source.parent / "models").exists()


@pytest.mark.parametrize(
    "source",
    [
        OnnxFile(Path("/f.onnx")),
        OnnxFile(Path("/f.onnx"), Normalisation.uniform(-1, 57.1234567)),
        OnnxFile(Path("/f.onnx"), Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
        OnnxFile(Path("/f.onnx"), PYTORCH, "bgr", "feature"),
        InsightFacePack("buffalo_l"),
        InsightFacePack("buffalo_l", Path("/packs")),
        Checkpoint(Path("/backbone.pth")),
        Checkpoint(Path("/magface.pth"), UNIT, "bgr"),
        Synthetic("r50"),
        Synthetic("r50", seed=7),
    ],
    ids=str,
)
def test_the_arguments_and_the_location_of_a_source_lead_back_to_it(
    source: Source, asked_for: Callable[[list[str]], Source]
) -> None:
    assert asked_for(build_arguments(source)) == source
    assert located(json.loads(json.dumps(source.location()))) == source


@pytest.mark.parametrize(
    ("source", "lasting"),
    [
        (OnnxFile(Path("f.onnx")), OnnxFile(Path("f.onnx").absolute())),
        (Checkpoint(Path("b.pth")), Checkpoint(Path("b.pth").absolute())),
        (InsightFacePack("p", Path("packs")), InsightFacePack("p", Path("packs").absolute())),
        (InsightFacePack("p", Path("~/packs")), InsightFacePack("p", Path.home() / "packs")),
        (InsightFacePack("p", accept_license=True), InsightFacePack("p")),
    ],
    ids=str,
)
def test_a_location_is_absolute_and_does_not_accept_a_license(
    source: Source, lasting: Source, asked_for: Callable[[list[str]], Source]
) -> None:
    assert located(source.location()) == lasting
    assert asked_for(build_arguments(source)) == lasting


def test_a_build_without_serving_flags_keeps_how_the_model_is_served(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = source.parent / "models/small_onnx/config.pbtxt"
    assert main(arguments(source, "--device", "gpu", "--instances", "2")) == 0
    before = config.read_text()

    assert main(arguments(source)) == 0
    assert config.read_text() == before

    assert main(arguments(source, "--instances", "3")) == 0
    assert "count: 3" in config.read_text()
    assert "config.pbtxt of all versions changes: " in caplog.text


@pytest.mark.parametrize(
    ("seed", "flags", "warning"),
    [
        (0, [], None),
        (0, ["--color", "bgr"], "version 2 has another preprocessing, BGR, (x - 127.5) / 127.5, not RGB"),
        (1, [], "version 2 has another source model, SHA-256 "),
    ],
    ids=["the same", "another channel order", "another source"],
)
def test_a_version_whose_embeddings_cannot_be_compared_with_the_last_ones_is_a_warning(
    seed: int, flags: list[str], warning: str | None, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(arguments(source)) == 0
    onnx.save_model(pytorch_pack(small_arcface(seed)), source)
    caplog.clear()

    assert main(arguments(source, *flags)) == 0
    assert ("embed galleries again" in caplog.text) == (warning is not None)
    assert (warning or "") in caplog.text


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--onnx-path", b"PK\x03\x04", "is a checkpoint; use --checkpoint"),
        ("--onnx-path", b"\x98\xdb\0\0\0\0\0\0{", "is a checkpoint; use --checkpoint"),
        (
            "--onnx-path",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer; run `git lfs",
        ),
        (
            "--checkpoint",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer; run `git lfs",
        ),
        ("--checkpoint", small_arcface().SerializeToString(), "is an ONNX file; use --onnx-path"),
    ],
    ids=["torch", "safetensors", "pointer", "pointer to a checkpoint", "ONNX"],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(
    flag: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    assert main(["build", "--name", "m", "--repository", str(tmp_path / "models"), flag, str(file)]) == 1
    assert f"{file} {message}" in capsys.readouterr().err


def test_broken_weights_are_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(source)
    weights = model.graph.initializer[0]
    weights.CopyFrom(from_array(np.full_like(to_array(weights), np.nan), weights.name))
    onnx.save_model(model, source)

    assert main(arguments(source)) == 1
    assert f"source.onnx holds NaN or infinite values in {weights.name}; " in capsys.readouterr().err


def test_the_output_says_if_the_source_itself_was_not_run(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save_model(mxnet_broken(small_arcface()), source)

    assert main(arguments(source)) == 0
    assert "of its source's fixed copy, not of the file itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (["--family", "magface"], OnnxFile(Path("/f.onnx"), UNIT, "bgr")),
        (["--family", "magface", "--color", "rgb"], OnnxFile(Path("/f.onnx"), UNIT, "rgb")),
        (["--normalisation", "mxnet"], OnnxFile(Path("/f.onnx"), Normalisation.uniform(127.5, 128))),
        (
            ["--normalisation", "(x - 127.5) / 128"],
            OnnxFile(Path("/f.onnx"), Normalisation.uniform(127.5, 128)),
        ),
        (["--color", "BGR"], OnnxFile(Path("/f.onnx"), color="bgr")),
    ],
    ids=["family", "family with another order", "name of a normalisation", "as printed", "capitals"],
)
def test_a_family_stands_for_its_channel_order_and_normalisation(
    flags: list[str], source: Source, asked_for: Callable[[list[str]], Source]
) -> None:
    assert asked_for(["--onnx-path", "/f.onnx", *flags]) == source


@pytest.mark.parametrize(
    "command", [[], ["inspect"], ["build"], ["compile"], ["engines"], ["engines", "prune"]]
)
def test_the_help_has_every_option_and_examples(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")

    assert main([*command, "--help"]) == 0

    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 110
    if command in ([], ["build"], ["compile"], ["engines"]):
        assert "Examples:" in shown
        assert "arcface-builder " in shown
    if command == []:
        assert "a TensorRT plan, cuDNN or OpenVINO" in shown
    if command == ["compile"]:
        for panel in ("The plan", "Where plans are kept", "A fleet's plans, without a GPU"):
            assert panel in shown


@pytest.mark.parametrize(
    "wrong",
    [
        ["build", "--name", "m"],
        ["build", "--synthetic", "r18"],
        ["build", "--name", "m", "--synthetic", "r18", "--onnx-path", "f.onnx"],
        ["build", "--name", "m", "--synthetic", "r42"],
        ["build", "--name", "m", "--onnx-path", "f.onnx", "--normalisation", "127.5"],
        ["build", "--name", "m", "--onnx-path", "f.onnx", "--normalisation", "0.5,0.5"],
        ["build", "--name", "m", "--synthetic", "r18", "--normalisation", "0,1"],
        ["build", "--name", "m", "--synthetic", "r18", "--color", "bgr"],
        ["build", "--name", "m", "--checkpoint", "f.pth", "--output", "feature"],
        ["build", "--name", "m", "--onnx-path", "f.onnx", "--family", "facenet"],
        ["build", "--name", "m", "--onnx-path", "f.onnx", "--accept-license"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(wrong) == 2
    assert "Value error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--synthetic", "r18", "--repository", ""], "the path is empty"),
        (["build", "--synthetic", "r18", "--repository", "a\udcff"], "'a\\udcff' is not UTF-8"),
        (["build", "--onnx-path", "a\udcff"], "'a\\udcff' is not UTF-8"),
        (["compile", "--repository", "a\udcff"], "'a\\udcff' is not UTF-8"),
    ],
    ids=["empty", "repository", "source", "compile"],
)
def test_a_path_that_no_manifest_could_hold_is_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--name", "m"]) == 2
    assert message in capsys.readouterr().err
