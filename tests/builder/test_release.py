"""Releases on a real Triton, with calls going on."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.cli.app import main
from arcface_builder.errors import ParityError, ReleaseError
from arcface_builder.release import Releases
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.source.load import OnnxFile
from arcface_client import get_embedding_backend
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.cli.app import main as client_main
from arcface_client.models.golden import golden_crops
from arcface_client.models.release import Release
from arcface_client.models.repository import LocalModels
from arcface_server import LocalTriton
from support import children
from support.exports import small_arcface
from support.processes import wait_until

pytestmark = pytest.mark.usefixtures("few_crops")

NAME = "small"
EXPLICIT = ("--model-control-mode=explicit", "--load-model=small_onnx")


@pytest.fixture
def unreleased(built: Path, tmp_path: Path) -> Path:
    """Versions 1 and 2 come from one network, and none of them was ever promoted."""
    root = tmp_path / "models"
    shutil.copytree(built / "models", root)
    build(OnnxFile(built / "source.onnx"), name=NAME, repository=root)
    return root


@pytest.fixture
def repository(unreleased: Path, tmp_path: Path) -> Path:
    """Version 1 is the release; 3 comes from another network than 1 and 2."""
    _releases(unreleased, "").promote(1, max_drift_cosine=1e-3)
    onnx.save_model(small_arcface(seed=9), tmp_path / "other.onnx")
    build(OnnxFile(tmp_path / "other.onnx"), name=NAME, repository=unreleased)
    return unreleased


@pytest.fixture
def triton(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, flags=EXPLICIT, stop_timeout_s=1) as server:
        yield server


def _releases(root: Path, url: str) -> Releases:
    return Releases(ModelRepository(root), NAME, [url] if url else [])


def _embedder(url: str) -> EmbeddingBackend:
    embedder = get_embedding_backend(
        "triton", triton_url=url, embedding_model=NAME, triton_recheck_s=0.1, allow_cpu_fallback=False
    )
    embedder.ensure_ready()
    return embedder


def _served(embedder: EmbeddingBackend, calls: int = 1) -> Counter[int | None]:
    """How many calls each version serves."""
    answers = [embedder.encode(golden_crops()[:1], return_source=True)[1] for _ in range(calls)]
    return Counter(source.version for answer in answers for source in answer.sources)


def _states(embedder: EmbeddingBackend) -> dict[str, str]:
    return {one.candidate.split(" ")[0]: one.state for one in embedder.diagnostics().candidates}


@pytest.mark.faults
def test_calls_go_over_to_a_promoted_version_and_back_and_none_is_lost_or_wrong(
    repository: Path,
    triton: LocalTriton,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    releases, stop, served = _releases(repository, triton.grpc_url), threading.Event(), Counter[int | None]()
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

    with _embedder(triton.grpc_url) as embedder:
        threads = [threading.Thread(target=load, args=(embedder,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: served[1] > 10)
            assert served[2] == 0
            promotion = releases.promote(2, max_drift_cosine=1e-3)
            wait_until(lambda: _served(embedder) == {2: 1})
            caplog.clear()
            assert releases.rollback() == 1
            wait_until(lambda: _served(embedder) == {1: 1})
            # A version that was unloaded on purpose is not a fault: no call fell back, and nothing warns.
            wait_until(lambda: _states(embedder)["small_onnx:2"] == "not the release")
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
    releases, models = _releases(repository, triton.grpc_url), repository / "small_onnx"
    before = {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}
    right = (models / "2" / "model.onnx").read_bytes()
    shutil.copyfile(models / "3" / "model.onnx", models / "2" / "model.onnx")

    def restore(stage: str, _: float | None) -> None:
        if stage.startswith("Computing"):  # the server has loaded the wrong file
            (models / "2" / "model.onnx").write_bytes(right)

    with pytest.raises(ParityError, match="drifts"):
        releases.promote(2, max_drift_cosine=1e-3, report=restore)
    assert {path: path.read_bytes() for path in repository.rglob("*.pbtxt")} == before
    with _embedder(triton.grpc_url) as embedder:
        assert _served(embedder) == {1: 1}
        seen = _states(embedder)
    assert seen["small_onnx:1"] == "serving"
    assert seen.get("small_onnx:2") in (None, "not the release")
    assert [(one.version, one.state) for one in releases.listed()][-1] == (1, "released")


@pytest.mark.faults
def test_a_version_that_a_server_cannot_load_is_not_released(repository: Path, triton: LocalTriton) -> None:
    (repository / "small_onnx" / "2" / "model.onnx").write_bytes(b"cut off")
    with pytest.raises(ReleaseError, match=r"does not load small_onnx:2 at"):
        _releases(repository, triton.grpc_url).promote(2, max_drift_cosine=1e-3)
    with _embedder(triton.grpc_url) as embedder:
        assert _served(embedder) == {1: 1}


@pytest.mark.faults
def test_a_canary_gets_its_share_of_the_calls(repository: Path, triton: LocalTriton) -> None:
    releases = _releases(repository, triton.grpc_url)
    with _embedder(triton.grpc_url) as embedder:
        releases.promote(2, max_drift_cosine=1e-3, share=0.3)
        wait_until(lambda: _served(embedder, 20)[2] > 0)
        served = _served(embedder, 200)
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
        wait_until(lambda: _served(embedder, 20) == {1: 20})


@pytest.mark.faults
def test_a_canary_of_another_embedding_space_is_checked_and_gets_no_calls(
    repository: Path, triton: LocalTriton
) -> None:
    releases = _releases(repository, triton.grpc_url)
    checked = releases.promote(3, max_drift_cosine=1e-3, share=0.5)
    assert max(checked.drift.values()) < 1e-6
    assert _versions(repository) == {3: "loaded", 2: "on disk", 1: "released"}
    with _embedder(triton.grpc_url) as embedder:
        assert _served(embedder, 20) == {1: 20}
    releases.retire(3)
    assert _versions(repository)[3] == "on disk"


def test_models_in_a_clients_process_are_the_release(repository: Path) -> None:
    def embeds() -> int | None:
        with get_embedding_backend(
            "onnxruntime", embedding_model=NAME, embedding_model_repository=repository
        ) as embedder:
            embedder.ensure_ready()
            return embedder.diagnostics().version

    assert embeds() == 1
    releases = _releases(repository, "")
    releases.promote(2, max_drift_cosine=1e-3)
    assert embeds() == 2
    releases.rollback()
    assert embeds() == 1


KILLED = """
import sys
from pathlib import Path
from arcface_builder.release import Releases
from arcface_builder.repository.publish import ModelRepository
from support.children import die_at

verb, root, step, number = sys.argv[1:]
releases = Releases(ModelRepository(Path(root)), "small")
die_at(int(step), int(number))
if verb.startswith("promote"):
    releases.promote(int(verb[-1]), max_drift_cosine=1e-3)
elif verb == "rollback":
    releases.rollback()
else:
    releases.prune(1)
"""


KILLED_IN_CHECK = """
import logging, os, sys
from pathlib import Path
from arcface_builder.release import Releases
from arcface_builder.repository.publish import ModelRepository

root, url, version, number = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, format="%(message)s")

def die(stage, _):
    if stage.startswith("Comparing"):
        os.kill(os.getpid(), int(number))

Releases(ModelRepository(Path(root)), "small", [url]).promote(int(version), max_drift_cosine=1e-3, report=die)
"""


def _versions(root: Path) -> dict[int, str]:
    return {one.version: one.state for one in _releases(root, "").listed()}


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["promote2", "rollback", "prune"])
def test_a_command_that_is_killed_at_some_step_is_finished_or_rolled_back_by_the_next(
    repository: Path, tmp_path: Path, verb: str
) -> None:
    if verb != "promote2":
        _releases(repository, "").promote(2, max_drift_cosine=1e-3)
    if verb == "prune":
        _releases(repository, "").retire(1)
    for step in range(0, 400, 5):
        root = tmp_path / str(step)
        shutil.copytree(repository, root)
        with children.start(KILLED, verb, root, step, 9) as child:
            code = child.wait()
        assert code in (0, -9)
        if verb == "prune":
            assert set(_versions(root)) >= {2, 3}
            _releases(root, "").prune(1)
            assert _versions(root) == {2: "released", 3: "on disk"}
        else:
            assert _releases(root, "").state.release.version in (1, 2)
            if step % 2:
                _releases(root, "").promote(2, max_drift_cosine=1e-3)
                assert _versions(root)[2] == "released"
            if step % 2 or _releases(root, "").state.release.version == 2:
                assert _releases(root, "").rollback() == 1
            assert _versions(root)[1] == "released"
        shutil.rmtree(root)
        if code == 0:
            return
    pytest.fail("no run ended by itself")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("version", [1, 2])
def test_a_first_promotion_that_ends_at_some_step_leaves_what_served_or_the_new_release(
    unreleased: Path, tmp_path: Path, version: int, number: signal.Signals
) -> None:
    for step in range(0, 400, 9):
        root = tmp_path / str(step)
        shutil.copytree(unreleased, root)
        with children.start(KILLED, f"promote{version}", root, step, int(number)) as child:
            code = child.wait()
        assert code in (0, -number)
        state, seen = _releases(root, "").state, _versions(root)
        assert state.release.version in (None, 1, version)
        assert (state.release.version or 2) in state.loaded()["small_onnx"]
        if state.release.canary:
            assert seen == {1: "released", 2: "unchecked"}
            assert _releases(root, "").rollback() == 1
            assert _versions(root) == {1: "released", 2: "on disk"}
        _releases(root, "").promote(version, max_drift_cosine=1e-3)
        assert _versions(root)[version] == "released"
        shutil.rmtree(root)
        if code == 0:
            return
    pytest.fail("no run ended by itself")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(("version", "serving"), [(1, 2), (2, 2), (2, 1)])
def test_a_first_promotion_that_ends_during_its_check_leaves_what_served(
    unreleased: Path, version: int, serving: int, number: signal.Signals
) -> None:
    config, second = unreleased / "small_onnx" / "config.pbtxt", unreleased / "small_onnx" / "2"
    if serving == 1:  # version 2 is built while the server runs
        second.rename(unreleased.parent / "2")
    before = config.read_text()
    with (
        LocalTriton(unreleased, flags=EXPLICIT, stop_timeout_s=1) as triton,
        _embedder(triton.grpc_url) as running,
    ):
        if serving == 1:
            (unreleased.parent / "2").rename(second)
        releases = _releases(unreleased, triton.grpc_url)
        with children.start(KILLED_IN_CHECK, unreleased, triton.grpc_url, version, int(number)) as child:
            told, _ = child.communicate()
        assert child.returncode == -number
        if number == signal.SIGINT:
            assert told == f"Version {version} was not promoted; what served before goes on serving\n"
            assert serving == 1 or config.read_text() == before
        elif version != serving:
            assert _versions(unreleased) == {serving: "released", version: "unchecked"}
        with _embedder(triton.grpc_url) as started:
            assert _served(running, 20) == _served(started, 20) == {serving: 20}
        if number == signal.SIGKILL and version != serving:
            assert releases.rollback() == serving
            assert _served(running, 20) == {serving: 20}
        releases.promote(version, max_drift_cosine=1e-3)
        wait_until(lambda: _served(running) == {version: 1})
        if version != serving:
            assert releases.rollback() == serving
            wait_until(lambda: _served(running) == {serving: 1})


def test_no_release_excludes_every_version(unreleased: Path) -> None:
    state = _releases(unreleased, "").state
    state.configure({"small_onnx": [1]}, Release(0))
    assert state.release == Release()
    assert _versions(unreleased) == {2: "on disk", 1: "loaded"}
    _releases(unreleased, "").promote(2, max_drift_cosine=1e-3)
    assert _versions(unreleased) == {2: "released", 1: "loaded"}


def test_what_serves_cannot_be_a_canary(repository: Path) -> None:
    with pytest.raises(ReleaseError, match="Version 1 is what serves; a canary is another version"):
        _releases(repository, "").promote(1, max_drift_cosine=1e-3, share=0.1)


@pytest.mark.faults
def test_a_promotion_that_is_killed_during_its_check_leaves_the_release_and_can_be_repeated(
    repository: Path, triton: LocalTriton
) -> None:
    with children.start(KILLED_IN_CHECK, repository, triton.grpc_url, 2, 9) as child:
        assert child.wait() == -signal.SIGKILL
    with _embedder(triton.grpc_url) as embedder:
        assert _served(embedder, 20) == {1: 20}
        _releases(repository, triton.grpc_url).promote(2, max_drift_cosine=1e-3)
        wait_until(lambda: _served(embedder) == {2: 1})


def test_a_command_without_a_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "list"]) == 2
    assert "Missing option '--name'" in capsys.readouterr().err


@pytest.mark.faults
def test_a_server_that_does_not_load_on_demand_is_named_with_the_flag_it_lacks(repository: Path) -> None:
    with LocalTriton(repository, stop_timeout_s=1) as server:
        with pytest.raises(ReleaseError, match="--model-control-mode=explicit"):
            _releases(repository, server.grpc_url).promote(2, max_drift_cosine=1e-3)
        with _embedder(server.grpc_url) as embedder:
            assert _served(embedder) == {1: 1}


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
