from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.errors import ManifestError, ModelNotFoundError
from arcface_client.models.files import sha256_of
from arcface_client.models.golden import golden_crops
from arcface_client.models.naming import family_models
from arcface_client.models.plan_manifest import PlanManifest
from arcface_client.models.repository import LocalModels
from support.engines import manifest, plan_key, sibling_manifest
from support.exports import save_for_insightface


def write_plan(
    models: Path, version: int = 1, sm: str = "90", precision: str = "fp16", **changes: str
) -> Path:
    """A plan's file and manifest, as `compile` writes them, of bytes that are not a plan."""
    path = models / f"small_trt/{version}/small-{precision}-sm{sm}.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"plan")
    onnx_sha256 = sha256_of(models / f"small_onnx/{version}/model.onnx")
    key = {"model": "small", "onnx_sha256": onnx_sha256, "sm": sm, "precision": precision} | changes
    record = models / f"small_trt-{version}-sm{sm}.manifest.json"
    record.write_text(manifest(b"plan", plan_key(**key)).to_json())
    return path


def another_release(models: Path, source: Path) -> None:
    build(OnnxFile(source), name="small", repository=models)


def test_the_references_are_the_source_models_embeddings_of_the_golden_crops(built: Path) -> None:
    reference = LocalModels(built / "models").golden("small_onnx", 1)

    source = OnnxFile(built / "source-0.onnx").load()
    assert reference is not None
    np.testing.assert_array_equal(reference.embeddings, source.embed(golden_crops()))
    assert reference.space.source_sha256 == sha256_of(built / "source-0.onnx")
    assert reference.space.precision_class == "float"
    assert reference.space.preprocessing == "RGB, (x - 127.5) / 127.5"


def test_a_plans_references_are_its_siblings_in_the_class_of_all_its_plans(models: Path) -> None:
    repository = LocalModels(models)
    sibling = repository.golden("small_onnx", 1)
    assert sibling is not None
    for sm, precision, expected in ((None, "", None), ("90", "fp16", "float"), ("86", "int8", None)):
        if sm:
            write_plan(models, sm=sm, precision=precision)
        plan = repository.golden("small_trt", 1)
        assert plan is not None
        assert plan.space.source_sha256 == sibling.space.source_sha256
        assert plan.space.precision_class == expected


@pytest.mark.parametrize(
    ("cudnn", "plan", "gpu", "first"),
    [
        (22_000.0, 15_000.0, "NVIDIA H200", "small_cudnn"),
        (22_000.0, 25_000.0, "NVIDIA H200", "small_trt"),
        (22_000.0, 25_000.0, "NVIDIA A10", "small_cudnn"),  # another GPU's figure says nothing
        (None, 25_000.0, "NVIDIA H200", "small_cudnn"),
        (22_000.0, None, "NVIDIA H200", "small_cudnn"),
    ],
)
def test_the_sibling_that_compile_measured_as_faster_is_preferred(
    cudnn: float | None, plan: float | None, gpu: str, first: str, models: Path
) -> None:
    repository = LocalModels(models)
    assert repository.models("small")[0] == "small_cudnn"
    write_plan(models)
    record = models / "small_trt-1-sm90.manifest.json"
    record.write_text(replace(PlanManifest.read(record), gpu_name=gpu, faces_per_s=plan).to_json())
    (models / "small_cudnn/1").mkdir(parents=True)
    of = sibling_manifest("small_cudnn", device="NVIDIA H200", faces_per_s=cudnn)
    (models / "small_cudnn-1.manifest.json").write_text(of.to_json())

    found = repository.models("small")

    assert found[0] == first
    assert sorted(found) == sorted(family_models("small"))


def test_the_plan_in_use_is_known_only_where_a_version_has_one(models: Path) -> None:
    repository = LocalModels(models)
    assert repository.only_plan("small_trt", 1) is None
    write_plan(models, sm="90")
    plan = repository.only_plan("small_trt", 1)
    assert plan is not None
    assert (plan.identity.precision, plan.identity.sm) == ("fp16", "90")
    write_plan(models, sm="86")
    assert repository.only_plan("small_trt", 1) is None


def test_without_a_manifest_of_these_golden_crops_there_is_no_reference(models: Path, tmp_path: Path) -> None:
    assert LocalModels(models).golden("small_onnx", 2) is None
    assert LocalModels(tmp_path / "nowhere").golden("small_trt", 1) is None

    path = models / "small_onnx-1.manifest.json"
    content = json.loads(path.read_text())
    content["golden"]["crops_sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    assert LocalModels(models).golden("small_onnx", 1) is None


def test_what_was_built_from_a_source_is_found_by_its_sha256(models: Path, built: Path) -> None:
    another_release(models, built / "source-0.onnx")
    (models / "other_onnx-1.manifest.json").write_text("damaged")
    found = LocalModels(models).built_from(sha256_of(built / "source-0.onnx"))
    assert found is not None
    assert (found.model, found.version) == ("small_onnx", 2)
    assert LocalModels(models).built_from("0" * 64) is None


def test_a_missing_model_is_an_error_that_says_what_to_do(models: Path, tmp_path: Path) -> None:
    message = r"no other_onnx in .*models; name another .* or run `arcface-builder build"
    with pytest.raises(ModelNotFoundError, match=message):
        LocalModels(models).onnx("other")
    with pytest.raises(ModelNotFoundError, match="no version 2 of small_onnx in"):
        LocalModels(models).onnx("small", 2)
    with pytest.raises(ModelNotFoundError, match=r"no small_onnx in .*nowhere"):
        LocalModels(tmp_path / "nowhere").onnx("small")
    with pytest.raises(ModelNotFoundError, match=r"no plan of small for sm75 .* `arcface-builder compile"):
        LocalModels(models).plan("small", "75")


def test_a_file_that_differs_from_its_manifest_is_refused(models: Path) -> None:
    with (models / "small_onnx/1/model.onnx").open("ab") as file:
        file.write(b"\0")

    with pytest.raises(ManifestError, match=r"model\.onnx has SHA-256 .*; its manifest says .* was changed"):
        LocalModels(models).onnx("small")


def test_a_model_without_a_manifest_is_refused(models: Path) -> None:
    write_plan(models)
    (models / "small_onnx-1.manifest.json").unlink()

    for find in (lambda: LocalModels(models).onnx("small"), lambda: LocalModels(models).plan("small", "90")):
        with pytest.raises(ManifestError, match=r"Cannot read the manifest .*small_onnx-1.*No such file"):
            find()


def test_the_plan_is_the_newest_for_the_gpu(models: Path, built: Path) -> None:
    another_release(models, built / "source-0.onnx")
    write_plan(models, 1)
    newest = write_plan(models, 2)
    write_plan(models, 2, sm="86")

    found = LocalModels(models).plan("small", "90")

    assert (found.path, found.version) == (newest, 2)
    assert found.manifest.plan_sha256 == sha256_of(newest)


def test_a_plan_of_an_older_release_serves_only_in_the_same_embedding_space(
    models: Path, built: Path, tmp_path: Path
) -> None:
    older = write_plan(models, 1)
    another_release(models, built / "source-0.onnx")
    assert LocalModels(models).plan("small", "90").path == older

    another_release(models, save_for_insightface(tmp_path, seed=1))
    with pytest.raises(ModelNotFoundError, match=r"sm90 .*; version 1 has another source model, SHA-256"):
        LocalModels(models).plan("small", "90")


def test_the_newest_version_in_an_embedding_space_is_found(models: Path, built: Path, tmp_path: Path) -> None:
    plan = write_plan(models, 1)
    another_release(models, built / "source-0.onnx")
    repository = LocalModels(models)
    ours = repository.onnx("small").manifest.embedding_space()
    another_release(models, save_for_insightface(tmp_path, seed=1))
    theirs = repository.onnx("small").manifest.embedding_space()

    assert repository.onnx("small").version == 3
    assert repository.onnx("small", space=ours).version == 2
    assert repository.plan("small", "90", ours).path == plan
    with pytest.raises(ModelNotFoundError, match=r"version 1 has another source model, SHA-256"):
        repository.plan("small", "90", theirs)
    shutil.rmtree(models / "small_onnx/3")
    with pytest.raises(ModelNotFoundError, match=r"No version of small_onnx .* version 2 has another.*; ver"):
        repository.onnx("small", space=theirs)


def test_a_plan_of_another_onnx_model_is_refused(models: Path) -> None:
    write_plan(models, onnx_sha256="1" * 64)

    with pytest.raises(
        ManifestError, match=r"made from an ONNX model with SHA-256 111111111111\.\.\.; small"
    ):
        LocalModels(models).plan("small", "90")
