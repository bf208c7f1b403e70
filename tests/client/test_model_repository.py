from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_builder.source.reference import ReferenceEmbedder
from arcface_client.errors import ManifestError, ModelNotFoundError
from arcface_client.models.golden import golden_crops
from arcface_client.models.repository import LocalModels, file_sha256
from support.engines import identity, manifest
from support.exports import save_for_insightface

Manifest = dict[str, Any]


def change(models: Path, edit: Callable[[Manifest], object], version: int = 1) -> None:
    path = models / f"small_onnx-{version}.manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def write_plan(
    models: Path, version: int = 1, sm: str = "90", precision: str = "fp16", **changes: str
) -> Path:
    """A plan's file and record, as `compile` writes them, of bytes that are no plan."""
    path = models / f"small_trt/{version}/small-{precision}-sm{sm}.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"plan")
    onnx_sha256 = file_sha256(models / f"small_onnx/{version}/model.onnx")
    of = identity(
        **{"model": "small", "onnx_sha256": onnx_sha256, "sm": sm, "precision": precision} | changes
    )
    record = manifest(b"plan", of)
    (models / f"small_trt-{version}-sm{sm}.manifest.json").write_text(record.to_json())
    return path


def another_release(models: Path, source: Path) -> None:
    build(OnnxFile(source), name="small", repository=models)


def test_the_builder_records_the_source_models_embeddings_of_the_golden_crops(built: Path) -> None:
    reference = LocalModels(built / "models").golden("small_onnx", 1)

    source = OnnxFile(built / "source-0.onnx").load()
    assert reference is not None
    np.testing.assert_array_equal(reference.embeddings, ReferenceEmbedder(source).embed(golden_crops()))
    assert reference.space.source_sha256 == file_sha256(built / "source-0.onnx")
    assert reference.space.precision_class == "float"
    assert reference.space.preprocessing == "RGB, mean 127.5, std 127.5"


def test_a_plan_is_held_against_what_its_sibling_was_built_from(models: Path) -> None:
    repository = LocalModels(models)
    sibling = repository.golden("small_onnx", 1)
    unknown = repository.golden("small_trt", 1)
    assert sibling is not None
    assert unknown is not None
    assert unknown.space.source_sha256 == sibling.space.source_sha256
    assert unknown.space.precision_class is None

    write_plan(models, sm="90")
    plan = repository.golden("small_trt", 1)
    assert plan is not None
    assert plan.space.precision_class == "float"
    write_plan(models, sm="86", precision="int8")
    mixed = repository.golden("small_trt", 1)
    assert mixed is not None
    assert mixed.space.precision_class is None


def test_which_plan_serves_is_certain_only_where_a_version_has_one(models: Path) -> None:
    repository = LocalModels(models)
    assert repository.only_plan("small_trt", 1) is None
    write_plan(models, sm="90")
    plan = repository.only_plan("small_trt", 1)
    assert plan is not None
    assert (plan.identity.precision, plan.identity.sm) == ("fp16", "90")
    write_plan(models, sm="86")
    assert repository.only_plan("small_trt", 1) is None
    assert repository.only_plan("small_onnx", 1) is None


def test_where_nothing_is_recorded_nothing_is_known(models: Path, tmp_path: Path) -> None:
    assert LocalModels(models).golden("small_onnx", 2) is None
    assert LocalModels(tmp_path / "nowhere").golden("small_trt", 1) is None


def test_embeddings_of_other_crops_are_no_reference(models: Path) -> None:
    change(models, lambda manifest: manifest["golden"].update(crops_sha256="0" * 64))

    assert LocalModels(models).golden("small_onnx", 1) is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema_version=3), "has schema_version 3; expected 1"),
        (lambda m: m.pop("source"), r"lacks source\."),
        (
            lambda m: m["source"].update(sha256="x"),
            r"source\.sha256 is 'x'; expected 64 lower",
        ),
        (lambda m: m["golden"].update(embeddings="*"), r"golden\.embeddings is '\*'; expected base64"),
        (
            lambda m: m["golden"].update(embeddings=base64.b64encode(bytes(16384)).decode()),
            r"golden\.embeddings is 'AAAA.*; expected rows of length one",
        ),
        (lambda m: m["golden"].pop("crops_sha256"), r"lacks golden\.crops_sha256"),
        (
            lambda m: m["preprocessing"].update(mean=[1, 2]),
            r"lacks preprocessing\.mean\.2",
        ),
        (lambda m: m["preprocessing"].update(std="1"), r"preprocessing\.std is '1'; expected a list"),
    ],
)
def test_a_record_that_cannot_be_true_is_said(
    edit: Callable[[Manifest], object], message: str, models: Path
) -> None:
    change(models, edit)

    with pytest.raises(ManifestError, match=rf"small_onnx-1\.manifest\.json.*{message}"):
        LocalModels(models).golden("small_onnx", 1)


@pytest.mark.parametrize("text", ["no json", "[]", "[" * 100_000, b"\xff"])
def test_a_file_that_is_not_a_manifest_is_refused(text: str | bytes, models: Path) -> None:
    path = models / "small_onnx-1.manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ManifestError, match=r"small_onnx-1\.manifest.* is .*Run `arcface-builder build`"):
        LocalModels(models).golden("small_onnx", 1)


def test_the_newest_version_is_found(models: Path, built: Path) -> None:
    another_release(models, built / "source-0.onnx")

    found = LocalModels(models).onnx("small")

    assert (found.model, found.version) == ("small_onnx", 2)
    assert found.path == models / "small_onnx/2/model.onnx"


def test_a_model_that_is_not_there_is_said_with_what_to_do(models: Path, tmp_path: Path) -> None:
    said = r"no other_onnx in .*models; name another .* or run `arcface-builder build"
    with pytest.raises(ModelNotFoundError, match=said):
        LocalModels(models).onnx("other")
    with pytest.raises(ModelNotFoundError, match="no version 2 of small_onnx in"):
        LocalModels(models).onnx("small", 2)
    with pytest.raises(ModelNotFoundError, match=r"no small_onnx in .*nowhere"):
        LocalModels(tmp_path / "nowhere").onnx("small")


def test_a_model_without_its_record_is_not_believed(models: Path) -> None:
    (models / "small_onnx-1.manifest.json").unlink()

    with pytest.raises(ManifestError, match=r"Cannot read the manifest .*small_onnx-1.*No such file"):
        LocalModels(models).onnx("small")


def test_a_file_that_is_another_than_the_one_recorded_is_not_believed(models: Path) -> None:
    with (models / "small_onnx/1/model.onnx").open("ab") as file:
        file.write(b"\0")

    with pytest.raises(ManifestError, match=r"model\.onnx has SHA-256 .*; its manifest says .* was changed"):
        LocalModels(models).onnx("small")


def test_the_plan_is_the_newest_for_the_gpu(models: Path, built: Path) -> None:
    another_release(models, built / "source-0.onnx")
    write_plan(models, 1)
    newest = write_plan(models, 2)
    write_plan(models, 2, sm="86")

    found = LocalModels(models).plan("small", "90")

    assert (found.path, found.version, found.manifest.identity.precision) == (newest, 2, "fp16")
    assert found.manifest.plan_sha256 == file_sha256(newest)


def test_a_gpu_without_a_plan_is_said(models: Path) -> None:
    write_plan(models)

    with pytest.raises(ModelNotFoundError, match=r"no plan of small for sm75 .* `arcface-builder compile"):
        LocalModels(models).plan("small", "75")


def test_a_plan_of_an_older_release_serves_only_if_the_gallery_is_the_same(
    models: Path, built: Path, tmp_path: Path
) -> None:
    older = write_plan(models, 1)
    another_release(models, built / "source-0.onnx")
    assert LocalModels(models).plan("small", "90").path == older

    another_release(models, save_for_insightface(tmp_path, seed=1))
    with pytest.raises(ModelNotFoundError, match=r"sm90 .*; version 1 is of another source model, SHA-256"):
        LocalModels(models).plan("small", "90")


def test_what_is_wanted_of_an_identity_is_the_newest_without_conflict(
    models: Path, built: Path, tmp_path: Path
) -> None:
    plan = write_plan(models, 1)
    another_release(models, built / "source-0.onnx")
    repository = LocalModels(models)
    ours = repository.onnx("small").manifest.embedding_space()
    another_release(models, save_for_insightface(tmp_path, seed=1))
    theirs = repository.onnx("small").manifest.embedding_space()

    assert repository.onnx("small").version == 3
    assert repository.onnx("small", space=ours).version == 2
    assert repository.plan("small", "90", ours).path == plan
    with pytest.raises(ModelNotFoundError, match=r"version 1 is of another source model, SHA-256"):
        repository.plan("small", "90", theirs)
    shutil.rmtree(models / "small_onnx/3")
    with pytest.raises(
        ModelNotFoundError, match=r"No version of small_onnx .* version 2 is of another.*; ver"
    ):
        repository.onnx("small", space=theirs)


def test_a_plan_of_another_onnx_model_is_not_believed(models: Path) -> None:
    write_plan(models, onnx_sha256="1" * 64)

    with pytest.raises(
        ManifestError, match=r"describes a plan of an ONNX model with SHA-256 111111111111\.\.\.; small"
    ):
        LocalModels(models).plan("small", "90")


def test_a_plan_of_a_precision_that_there_is_not_is_not_believed(models: Path) -> None:
    write_plan(models)
    path = models / "small_trt-1-sm90.manifest.json"
    path.write_text(path.read_text().replace('"fp16"', '"fp8"'))

    with pytest.raises(ManifestError, match=r"identity\.precision is 'fp8'; expected one of fp32, tf32"):
        LocalModels(models).plan("small", "90")


def test_a_plan_whose_sibling_is_gone_is_not_believed(models: Path) -> None:
    write_plan(models)
    shutil.rmtree(models / "small_onnx")
    (models / "small_onnx-1.manifest.json").unlink()

    with pytest.raises(ManifestError, match="Cannot read the manifest"):
        LocalModels(models).plan("small", "90")


def test_the_golden_embeddings_of_a_source_are_found_by_its_sha256(models: Path, built: Path) -> None:
    repository = LocalModels(models)

    assert repository.golden_of_source("small", file_sha256(built / "source-0.onnx")) is not None
    assert repository.golden_of_source("small", "0" * 64) is None
