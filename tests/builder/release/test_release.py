"""Releases on a real Triton, with calls going on."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.cli.app import main
from arcface_builder.errors import ParityError, ReleaseError
from arcface_builder.source.load import OnnxFile
from arcface_client import get_embedding_backend
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.cli.app import main as client_main
from arcface_client.models.golden import golden_crops
from arcface_client.models.release import Release
from arcface_client.models.repository import LocalModels
from arcface_server import LocalTriton
from support.processes import wait_until
from support.releases import NAME, pooled, releases_of, served_by, states_of, versions_of

pytestmark = pytest.mark.usefixtures("few_crops")


@pytest.mark.faults
def test_calls_go_over_to_a_promoted_version_and_back_and_none_is_lost_or_wrong(
    repository: Path,
    triton: LocalTriton,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    releases, stop, served = (
        releases_of(repository, triton.grpc_url),
        threading.Event(),
        Counter[int | None](),
    )
    reference = LocalModels(repository).golden("small_onnx", 1)
    assert reference is not None
    wrong: list[object] = []

    def load(embedder: EmbeddingBackend) -> None:
        while not stop.is_set():
            try:
                found, answer = embedder.encode(golden_crops(), return_source=True)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                wrong.append(error)
                continue
            served.update(source.version for source in answer.sources)
            if not np.allclose(found, reference.embeddings, atol=1e-4):
                wrong.append(answer)

    with pooled(triton.grpc_url) as embedder:
        threads = [threading.Thread(target=load, args=(embedder,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: served[1] > 10)
            assert served[2] == 0
            promotion = releases.promote(2, max_drift_cosine=1e-3)
            wait_until(lambda: served_by(embedder) == {2: 1})
            caplog.clear()
            assert releases.rollback() == 1
            wait_until(lambda: served_by(embedder) == {1: 1})
            # A version that was unloaded on purpose is not a fault: no call fell back, and nothing warns.
            wait_until(lambda: states_of(embedder)["small_onnx:2"] == "not the release")
            assert not embedder.encode(golden_crops(), return_source=True)[1].fell_back
            assert not [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert served[2]
    where = ["--url", triton.grpc_url]
    assert client_main(["status", *where]) == 0
    told = capsys.readouterr().out
    assert re.search(r"small_onnx +1 +READY, release ", told)
    assert re.search(r"small_onnx +2 +(UNLOADING|UNAVAILABLE), not the release ", told)
    client_main(["doctor", *where, "--model", NAME, "--json"])
    levels = {one["found"]: one["level"] for one in json.loads(capsys.readouterr().out)}
    assert levels["small_onnx:1 is ready, release"] == "ok"
    assert levels["small_onnx:2: it is not the release, and is unloaded"] == "ok"
    assert levels[f"small_onnx:2 at {triton.grpc_url} is not the release"] == "ok"
    assert promotion.drift[f"small_onnx at {triton.grpc_url}"] < 1e-6


@pytest.mark.faults
def test_a_version_that_drifts_as_served_is_not_released_and_is_unloaded(
    repository: Path, triton: LocalTriton
) -> None:
    releases, models = releases_of(repository, triton.grpc_url), repository / "small_onnx"
    before = {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}
    right = (models / "2" / "model.onnx").read_bytes()
    shutil.copyfile(models / "3" / "model.onnx", models / "2" / "model.onnx")

    def restore(stage: str, _: float | None) -> None:
        if stage.startswith("Computing"):  # the server has loaded the wrong file
            (models / "2" / "model.onnx").write_bytes(right)

    with pytest.raises(ParityError, match="drifts"):
        releases.promote(2, max_drift_cosine=1e-3, report=restore)
    assert {path: path.read_bytes() for path in repository.rglob("*.pbtxt")} == before
    with pooled(triton.grpc_url) as embedder:
        assert served_by(embedder) == {1: 1}
        seen = states_of(embedder)
    assert seen["small_onnx:1"] == "serving"
    assert seen.get("small_onnx:2") in (None, "not the release")
    assert [(one.version, one.state) for one in releases.listed()][-1] == (1, "released")


@pytest.mark.faults
def test_a_version_that_a_server_cannot_load_is_not_released(repository: Path, triton: LocalTriton) -> None:
    (repository / "small_onnx" / "2" / "model.onnx").write_bytes(b"cut off")
    with pytest.raises(ReleaseError, match=r"does not load small_onnx:2 at"):
        releases_of(repository, triton.grpc_url).promote(2, max_drift_cosine=1e-3)
    with pooled(triton.grpc_url) as embedder:
        assert served_by(embedder) == {1: 1}


@pytest.mark.faults
def test_a_canary_gets_its_share_of_the_calls(repository: Path, triton: LocalTriton) -> None:
    releases = releases_of(repository, triton.grpc_url)
    with pooled(triton.grpc_url) as embedder:
        releases.promote(2, max_drift_cosine=1e-3, share=0.3)
        wait_until(lambda: served_by(embedder, 20)[2] > 0)
        served = served_by(embedder, 200)
        assert 30 < served[2] < 95  # 60 are expected; beyond these bounds once in 10 million
        assert (
            next(one.state for one in embedder.diagnostics().candidates if ":2 " in one.candidate) == "canary"
        )
        assert {one.version: one.state for one in releases.listed()} == {
            3: "on disk",
            2: "canary",
            1: "released",
        }
        assert releases.rollback() == 1
        wait_until(lambda: served_by(embedder, 20) == {1: 20})


@pytest.mark.faults
def test_a_canary_of_another_embedding_space_is_checked_and_gets_no_calls(
    repository: Path, triton: LocalTriton
) -> None:
    releases = releases_of(repository, triton.grpc_url)
    checked = releases.promote(3, max_drift_cosine=1e-3, share=0.5)
    assert max(checked.drift.values()) < 1e-6
    assert versions_of(repository) == {3: "loaded", 2: "on disk", 1: "released"}
    with pooled(triton.grpc_url) as embedder:
        assert served_by(embedder, 20) == {1: 20}
    releases.retire(3)
    assert versions_of(repository)[3] == "on disk"


def test_models_in_a_clients_process_are_the_release(repository: Path) -> None:
    def embeds() -> int | None:
        with get_embedding_backend(
            "onnxruntime", embedding_model=NAME, embedding_model_repository=repository
        ) as embedder:
            embedder.ensure_ready()
            return embedder.diagnostics().version

    assert embeds() == 1
    releases = releases_of(repository, "")
    releases.promote(2, max_drift_cosine=1e-3)
    assert embeds() == 2
    releases.rollback()
    assert embeds() == 1


def test_no_release_excludes_every_version(unreleased: Path) -> None:
    state = releases_of(unreleased, "").state
    state.configure({"small_onnx": [1]}, Release(0))
    assert state.release == Release()
    assert versions_of(unreleased) == {2: "on disk", 1: "loaded"}
    releases_of(unreleased, "").promote(2, max_drift_cosine=1e-3)
    assert versions_of(unreleased) == {2: "released", 1: "loaded"}


def test_what_serves_cannot_be_a_canary(repository: Path) -> None:
    with pytest.raises(ReleaseError, match="Version 1 is what serves; a canary is another version"):
        releases_of(repository, "").promote(1, max_drift_cosine=1e-3, share=0.1)


def test_a_command_without_a_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "list"]) == 2
    assert "Missing option '--name'" in capsys.readouterr().err


@pytest.mark.faults
def test_a_server_that_does_not_load_on_demand_is_named_with_the_flag_it_lacks(repository: Path) -> None:
    with LocalTriton(repository, stop_timeout_s=1) as server:
        with pytest.raises(ReleaseError, match="--model-control-mode=explicit"):
            releases_of(repository, server.grpc_url).promote(2, max_drift_cosine=1e-3)
        with pooled(server.grpc_url) as embedder:
            assert served_by(embedder) == {1: 1}


def test_versions_are_listed_retired_and_pruned_from_the_command_line(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> tuple[int, str]:
        code = main(["release", argv[0], "--name=small", f"--repository={repository}", "--url=", *argv[1:]])
        told = capsys.readouterr()
        return code, told.out + told.err

    assert run("promote", "2")[0] == 0
    assert run("prune", "--keep=1") == (
        0,
        "No version can be removed: the servers load them, or they are among the newest.\n",
    )
    assert "Version 2 is in use" in run("retire", "2")[1]
    assert run("retire", "1") == (0, "Version 1 of small is not loaded any more\n")
    assert run("prune", "--keep=1", "--dry-run") == (0, "would be removed: version 1 of small\n")
    assert run("prune", "--keep=1")[0] == 0
    listed = json.loads(run("list", "--json")[1])
    assert [(one["version"], one["state"]) for one in listed] == [(3, "on disk"), (2, "released")]
    assert "is not on disk" in run("rollback")[1]
    assert build(OnnxFile(repository.parent / "other.onnx"), name=NAME, repository=repository).version == 4
