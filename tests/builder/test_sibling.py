"""``arcface-builder compile --runtime openvino`` and ``cudnn``: the ONNX model's siblings."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import load_model, save_model

from arcface_builder.build import build
from arcface_builder.check import crops as faces
from arcface_builder.check.accuracy import ReferenceEmbeddings, reference_for_plans
from arcface_builder.cli.app import main
from arcface_builder.errors import ParityError, RepositoryError
from arcface_builder.repository.config import (
    SERVER_CONFIG_FILE,
    cudnn_config,
    openvino_config,
    openvino_server_config,
    read_config,
)
from arcface_builder.repository.publish import ModelRepository, find_onnx
from arcface_builder.sibling import KINDS, AddedSibling, compile_sibling
from arcface_builder.source.load import OnnxFile
from arcface_client.backends.factory import get_embedding_backend
from arcface_client.cli.app import main as client
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeploymentError
from arcface_client.models.golden import golden_crops, largest_drift
from arcface_client.models.plan_manifest import SiblingManifest
from arcface_client.models.repository import LocalModels
from arcface_client.runtimes.openvino import OpenVino
from arcface_server import LocalTriton
from support.image_files import save_crops
from support.networks import NETWORKS, ONE_CROP
from support.pair_files import many_pairs

pytestmark = pytest.mark.usefixtures("few_crops")


def arguments(repository: ModelRepository, *more: str) -> list[str]:
    place = ["--name", "small", "--repository", str(repository.root)]
    return ["compile", *place, "--runtime", "openvino", *more]


def test_it_embeds_as_the_source_does_and_says_in_which_precision(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(repository)) == 0

    first, second = capsys.readouterr().out.splitlines()
    found = LocalModels(repository.root).sibling("small_openvino")
    made = f"openvino {found.manifest.runtime_version}, {found.manifest.precision} on {found.manifest.device}"
    assert first == f"small_openvino version 1 added ({made})"
    assert second.startswith("largest drift ")
    assert found.path.read_bytes() == find_onnx(repository, "small").content()
    assert found.manifest.precision in ("bf16", "fp16", "fp32")
    assert found.onnx.golden.known is not None
    drift = largest_drift(found.onnx.golden.known, OpenVino(found.path).embed(golden_crops()))
    assert drift <= found.manifest.parity.max_drift_cosine
    assert " compile --name small --version 1 " in found.manifest.rebuild_command


def test_a_second_time_it_is_there_already_and_only_the_instances_change(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(repository)) == 0
    config, record = repository.root / "small_openvino/config.pbtxt", repository.root
    before = (config.stat().st_mtime_ns, (record / "small_openvino-1.manifest.json").read_text())
    capsys.readouterr()

    assert main(arguments(repository, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["siblings"][0]["is_new"] is False
    assert (config.stat().st_mtime_ns, (record / "small_openvino-1.manifest.json").read_text()) == before

    assert main(arguments(repository, "--instances", "4")) == 0
    changed, of_server = (read_config(path) for path in (config, config.parent / SERVER_CONFIG_FILE))
    assert changed == openvino_config("small_openvino", 512, 4)
    assert of_server == openvino_server_config("small_openvino", 512, 4)
    assert changed.parameters["NUM_STREAMS"].string_value == "4"
    assert changed.parameters["PERFORMANCE_HINT"].string_value == "THROUGHPUT"


def test_another_precision_than_that_of_the_version_there_is_refused(
    repository: ModelRepository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(repository)) == 0
    capsys.readouterr()

    crops = ["--calibration-dir", str(save_crops(tmp_path / "crops", faces.noise(32)))]
    assert main(arguments(repository, "--precision", "mixed", *crops)) == 1

    message = capsys.readouterr().err
    assert re.search(r"small_openvino version 1 is there already, in \w+, and mixed was asked for", message)


def test_a_version_that_another_command_added_meanwhile_stays_as_it_is(repository: ModelRepository) -> None:
    onnx = find_onnx(repository, "small")
    reference = partial(reference_for_plans, onnx.path, None, faces.noise(32), max_drift_cosine=0.001)

    def meanwhile() -> ReferenceEmbeddings:
        compile_sibling(KINDS["openvino"], onnx, repository, reference, command="first")
        return reference()

    with pytest.raises(RepositoryError, match="added by another command meanwhile"):
        compile_sibling(KINDS["openvino"], onnx, repository, meanwhile, command="second")
    assert repository.sibling("small_openvino").manifest.rebuild_command == "first"


def test_a_sibling_of_an_older_release_gets_the_configuration_that_it_lacks(
    repository: ModelRepository,
) -> None:
    assert main(arguments(repository)) == 0
    config = repository.root / "small_openvino/config.pbtxt"
    (config.parent / SERVER_CONFIG_FILE).unlink()
    written = config.stat().st_mtime_ns

    assert main(arguments(repository)) == 0
    assert read_config(config.parent / SERVER_CONFIG_FILE) is not None
    assert config.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "kind", ["flatten of two axes", "opset 21", "192 numbers, channels last", "one crop"]
)
def test_any_network_that_is_built_runs_in_openvino(kind: str, tmp_path: Path) -> None:
    save_model({**NETWORKS, "one crop": ONE_CROP}[kind], tmp_path / "net.onnx")
    build(OnnxFile(tmp_path / "net.onnx"), name="small", repository=tmp_path / "models")

    assert main(arguments(ModelRepository(tmp_path / "models"))) == 0

    found = LocalModels(tmp_path / "models").sibling("small_openvino")
    assert OpenVino(found.path).embed(golden_crops()).shape == (8, found.onnx.embedding_dim)


@pytest.fixture
def faces_folder(tmp_path: Path) -> Path:
    return save_crops(tmp_path / "faces", faces.face_like(40, seed=9))


def test_mixed_precision_has_pairs_in_the_file_and_the_manifest_names_the_convolutions(
    repository: ModelRepository, faces_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_VALIDATION_MAX_DRIFT_COSINE", "0.0004")

    assert main(arguments(repository, "--precision", "mixed", "--calibration-dir", str(faces_folder))) == 0

    found = LocalModels(repository.root).sibling("small_openvino")
    nodes = load_model(found.path).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    in_int8 = [node.name for node in convolutions if node.input[1].endswith("dequantised")]
    assert (found.manifest.precision, found.space.precision_class) == ("mixed", "float")
    assert list(found.manifest.quantised) == in_int8
    assert 0 < len(in_int8) < 5
    assert 1e-7 < found.manifest.parity.largest_drift_cosine < 0.0004
    assert " --precision mixed --calibration-dir " in found.manifest.rebuild_command


@pytest.fixture
def in_int8(
    repository: ModelRepository, faces_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalModels:
    """A repository with a sibling in int8 that drifts, and passed by its recognition."""
    monkeypatch.setenv("ARCFACE_VALIDATION_MAX_DRIFT_COSINE", "0.0002")
    (tmp_path / "set.bin").write_bytes(pickle.dumps(many_pairs(48)))
    by_task = ["--pairs", str(tmp_path / "set.bin"), "--max-accuracy-loss", "0.05"]
    crops = ["--calibration-dir", str(faces_folder)]
    assert main(arguments(repository, "--precision", "int8", *crops, *by_task)) == 0
    return LocalModels(repository.root)


def test_int8_that_passed_by_its_recognition_is_a_space_that_a_client_has_to_ask_for(
    in_int8: LocalModels, caplog: pytest.LogCaptureFixture
) -> None:
    found = in_int8.sibling("small_openvino")
    parity = found.manifest.parity
    assert parity.largest_drift_cosine > parity.max_drift_cosine
    assert [loss.rate for loss in parity.task] == ["verification accuracy", "TAR at FAR 0.001"]
    assert found.space.precision_class == f"int8-{found.manifest.calibration_sha256:.12}"
    golden = in_int8.golden("small_openvino", 1)
    assert golden is not None
    assert golden.space == found.space
    assert largest_drift(golden.embeddings, OpenVino(found.path).embed(golden_crops())) < 1e-6
    assert len(found.manifest.quantised) == 5

    where: dict[str, Any] = {"embedding_model": "small", "embedding_model_repository": in_int8.root}
    with get_embedding_backend("openvino", **where) as embedder:
        _, served = embedder.encode(golden_crops(), return_source=True)
        (refused,) = (one for one in embedder.diagnostics().candidates if one.state == "refused")
    assert served.sources[0].model == "small_onnx"
    assert "another precision class, int8-" in str(refused.reason)
    assert "computes in int8" not in caplog.text

    with get_embedding_backend("openvino", embedding_space="int8", **where) as embedder:
        _, served = embedder.encode(golden_crops(), return_source=True)
        assert embedder.space().is_int8
        assert embedder.diagnostics().precision == "int8"
    assert served.sources[0].model == "small_openvino"
    assert "computes in int8: its embeddings are not comparable with those of any other model" in caplog.text

    with (
        get_embedding_backend("onnxruntime", embedding_space="int8", **where) as embedder,
        pytest.raises(DeploymentError, match="int8"),
    ):
        embedder.ensure_ready()


def test_a_gallery_in_int8_is_made_by_a_server_when_it_is_asked_for(
    in_int8: LocalModels,
    faces_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL_REPOSITORY", str(in_int8.root))
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL", "small")
    output = tmp_path / "gallery.parquet"
    with LocalTriton(in_int8.root) as server:
        embed = ["embed", str(faces_folder), "--output", str(output), "--url", server.grpc_url]
        embed += ["--model", "small_openvino"]
        assert client(embed) == 1
        assert "computes in int8-" in capsys.readouterr().err

        monkeypatch.setenv("ARCFACE_EMBEDDING_SPACE", "int8")
        assert client(embed) == 0
    assert "by small_openvino:1" in capsys.readouterr().out


class Wrong(OpenVino):
    """OpenVINO as it would be with a fault."""

    def embed(self, crops: Crops) -> Embeddings:
        embeddings = super().embed(crops)
        return np.roll(embeddings, 1, axis=1)


class Mixed(OpenVino):
    """OpenVINO as it would be if it mixed the rows of a batch."""

    def embed(self, crops: Crops) -> Embeddings:
        return super().embed(crops)[::-1]


class OnAGpu(OpenVino):
    """A runtime that can be timed, as those on a GPU can: 4 crops in a millisecond."""

    max_batch_size = 4

    def back_to_back_s(self, crops: Crops, repeats: int) -> float:
        assert crops.shape[0] == 4
        assert repeats >= 3
        return 0.001


def compiled(repository: ModelRepository, name: str, runtime: Callable[[Path], OpenVino]) -> AddedSibling:
    """Add the sibling of a kind, with another runtime in its place."""
    onnx = find_onnx(repository, "small")
    kind = replace(KINDS[name], open=runtime)
    reference = partial(reference_for_plans, onnx.path, None, faces.noise(32), max_drift_cosine=0.001)
    return compile_sibling(kind, onnx, repository, reference, command="")


def test_the_manifest_has_the_speed_on_a_gpu(repository: ModelRepository) -> None:
    added = compiled(repository, "openvino", OnAGpu)

    assert added.manifest.faces_per_s == 4000
    assert SiblingManifest.read(repository.root / "small_openvino-1.manifest.json") == added.manifest


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (Wrong, "The model in openvino drifts by .* from the served ONNX model; .*Nothing was published"),
        (Mixed, "embedding of a crop drifts by .* with its place in a batch"),
    ],
)
def test_embeddings_that_are_not_the_sources_are_not_published(
    runtime: Callable[[Path], OpenVino], reason: str, repository: ModelRepository
) -> None:
    before = sorted(repository.root.rglob("*"))

    with pytest.raises(ParityError, match=reason):
        compiled(repository, "openvino", runtime)

    assert sorted(repository.root.rglob("*")) == before


def test_a_version_with_another_file_is_never_changed_and_a_lost_manifest_is_made_again(
    repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(repository)) == 0
    record = repository.root / "small_openvino-1.manifest.json"
    file = repository.root / "small_openvino/1/model.onnx"

    record.unlink()
    assert main(arguments(repository)) == 0
    assert SiblingManifest.read(record).onnx_sha256 == find_onnx(repository, "small").sha256

    file.write_bytes(b"another file")
    assert main(arguments(repository)) == 1
    assert "A published version is never changed: build the next one." in capsys.readouterr().err
    assert file.read_bytes() == b"another file"


@pytest.mark.parametrize(
    ("name", "runtime", "module"), [("OpenVINO", "openvino", "openvino"), ("cuDNN", "cudnn", "cudnn.runtime")]
)
def test_without_its_runtime_one_line_says_what_to_install(
    name: str,
    runtime: str,
    module: str,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(sys.modules, f"arcface_client.runtimes.{module}", raising=False)
    monkeypatch.setitem(sys.modules, runtime, None)

    assert main(arguments(repository, "--runtime", runtime)) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"arcface-builder: A model for {name} needs the package {runtime}: "
        f"pip install 'arcface-triton[{runtime}]'"
    )
    assert not (repository.root / f"small_{runtime}").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--precision", "mixed", "--pairs", "set.bin"], "--pairs judges what --precision int8 loses"),
        (["--max-accuracy-loss", "0.01"], "--max-accuracy-loss belongs to --pairs"),
        (
            ["--cc", "9.0", "--workspace-size-mb", "512"],
            "takes no option of TensorRT plans: --cc, --workspace-size-mb.",
        ),
        (["--precision", "fp16"], "takes --precision int8 or mixed; without it, it computes in"),
    ],
    ids=["pairs", "loss", "plans", "precision"],
)
def test_options_that_do_not_fit_are_wrong_usage(
    wrong: list[str], message: str, repository: ModelRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(repository, *wrong)) == 2
    assert message in capsys.readouterr().err


def test_a_model_for_cudnn_has_what_tritons_python_backend_runs(repository: ModelRepository) -> None:
    added = compiled(repository, "cudnn", OpenVino)

    version = repository.root / "small_cudnn/1"
    assert added.path == version / "model.onnx"
    assert sorted(path.name for path in version.iterdir()) == ["model.onnx", "model.py"]
    assert (version / "model.py").read_text().startswith("from arcface_server.backends.cudnn import ")
    assert read_config(repository.root / "small_cudnn/config.pbtxt") == cudnn_config("small_cudnn", 512, 2)
    assert LocalModels(repository.root).sibling("small_cudnn").manifest.runtime == "cudnn"
