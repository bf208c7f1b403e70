"""``arcface-client migrate``: a gallery in another model's embedding space, and what the change does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.cli.app import main
from arcface_client.contract import Crops
from arcface_client.gallery import open_gallery
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.exports import save_for_insightface
from support.image_files import save_crops


@pytest.fixture(scope="module")
def two_models(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with small_onnx and another_onnx, which have different sources."""
    folder = tmp_path_factory.mktemp("two")
    models = shutil.copytree(built / "models", folder / "models")
    build(OnnxFile(save_for_insightface(folder, seed=5)), name="another", repository=models)
    return models


@pytest.fixture
def folder(tmp_path: Path, two_models: Path, crops: Crops, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``crops/`` with 40 images, and ``old.parquet`` of them by small_onnx."""
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL_REPOSITORY", str(two_models))
    save_crops(tmp_path / "crops", crops[:40], "{:02}.png")
    flags = ["--output", str(tmp_path / "old.parquet"), "--backend", "onnxruntime", "--model", "small"]
    assert main(["embed", str(tmp_path / "crops"), *flags]) == 0
    return tmp_path


def migrate(folder: Path, *flags: str, to: str = "another", old: str = "old.parquet") -> int:
    paths = ["--source", str(folder / "crops"), "--output", str(folder / "new.parquet")]
    model = ["--backend", "onnxruntime", "--to", to]
    return main(["migrate", str(folder / old), *paths, *model, "--k", "5", *flags])


def test_a_migration_embeds_anew_and_says_what_changes(
    folder: Path, two_models: Path, crops: Crops, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "old.parquet").read_bytes()
    capsys.readouterr()
    assert migrate(folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (folder / "old.parquet").read_bytes() == before
    assert {name: told[name] for name in ("from", "to", "rows", "failed", "missing", "added")} == {
        "from": "small_onnx:1",
        "to": "another_onnx:1",
        "rows": 40,
        "failed": 0,
        "missing": 0,
        "added": 0,
    }
    ids, embeddings = open_gallery(folder / "new.parquet").load()
    assert ids == open_gallery(folder / "old.parquet").load()[0]
    wanted = OnnxRuntime(two_models / "another_onnx/1/model.onnx").embed(crops[:40])
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)

    change = told["change"]
    assert (change["sample"], change["k"], change["flips"]["threshold"]) == (40, 5, 0.3)
    assert 0 < change["recall"] < 1

    assert migrate(folder) == 0  # the new gallery is there: only the report is made again
    printed = capsys.readouterr().out
    assert ["recall@5", f"{change['recall']:.3f}"] in [line.split() for line in printed.splitlines()]
    assert f"{folder}/old.parquet is as it was." in printed


def test_ids_that_the_source_lacks_and_new_ones_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "crops/07.png").rename(folder / "crops/new.png")
    (folder / "crops/08.png").write_bytes(b"")
    capsys.readouterr()
    assert migrate(folder, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    counts = [told[name] for name in ("rows", "failed", "missing", "added")]
    assert (counts, told["change"]["sample"]) == ([40, 1, 1, 1], 38)


def test_a_migration_to_the_same_model_or_into_another_job_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migrate(folder, to="small") == 1
    assert "is by small_onnx:1 of source SHA-256" in capsys.readouterr().err
    shutil.copy(folder / "old.parquet", folder / "new.parquet")
    assert migrate(folder) == 1
    told = capsys.readouterr().err
    assert "new.parquet belongs to another job: model was 'small_onnx' there" in told
    assert told.endswith("Give another --output.\n")


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        (".", "new.parquet", "its own are such as '00.png'. Give --source as `embed` was given it"),
        ("crops", "crops/../old.parquet", "is the old gallery, which is only read; give another."),
        ("crops", "missing/new.parquet", "There is no folder"),
    ],
)
def test_what_would_end_in_an_error_is_refused_before_a_model_is_asked_for(
    source: str, output: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--source", str(folder / source), "--output", str(folder / output)]
    capsys.readouterr()
    assert main(["migrate", str(folder / "old.parquet"), *paths, "--to", "missing"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_an_npz_becomes_a_gallery_with_the_same_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(folder / "old.npz"), "--backend", "onnxruntime", "--model", "small"]
    assert main(["embed", str(folder / "crops"), *flags]) == 0
    capsys.readouterr()
    assert migrate(folder, "--json", old="old.npz") == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 0
