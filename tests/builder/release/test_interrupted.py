"""Commands on releases that are interrupted or killed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcface_server import LocalTriton
from support import children
from support.processes import wait_until
from support.releases import EXPLICIT, pooled, releases_of, served_by, versions_of

pytestmark = pytest.mark.usefixtures("few_crops")


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


def _ended_at_steps(
    repository: Path, tmp_path: Path, verb: str, number: signal.Signals, every: int
) -> Iterator[tuple[Path, int]]:
    """Copies of a repository in which a command has ended, until one runs to its end; and the step."""
    for step in range(0, 400, every):
        root = tmp_path / str(step)
        shutil.copytree(repository, root)
        with children.start(KILLED, verb, root, step, int(number)) as child:
            code = child.wait()
        assert code in (0, -number)
        yield root, step
        shutil.rmtree(root)
        if code == 0:
            return
    pytest.fail("no run ended by itself")


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["promote2", "rollback", "prune"])
def test_a_command_that_is_killed_at_some_step_is_finished_or_rolled_back_by_the_next(
    repository: Path, tmp_path: Path, verb: str
) -> None:
    if verb != "promote2":
        releases_of(repository, "").promote(2, max_drift_cosine=1e-3)
    if verb == "prune":
        releases_of(repository, "").retire(1)
    for root, step in _ended_at_steps(repository, tmp_path, verb, signal.SIGKILL, 5):
        if verb == "prune":
            assert set(versions_of(root)) >= {2, 3}
            releases_of(root, "").prune(1)
            assert versions_of(root) == {2: "released", 3: "on disk"}
        else:
            assert releases_of(root, "").state.release.version in (1, 2)
            if step % 2:
                releases_of(root, "").promote(2, max_drift_cosine=1e-3)
                assert versions_of(root)[2] == "released"
            if step % 2 or releases_of(root, "").state.release.version == 2:
                assert releases_of(root, "").rollback() == 1
            assert versions_of(root)[1] == "released"


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("version", [1, 2])
def test_a_first_promotion_that_ends_at_some_step_leaves_what_served_or_the_new_release(
    unreleased: Path, tmp_path: Path, version: int, number: signal.Signals
) -> None:
    for root, _ in _ended_at_steps(unreleased, tmp_path, f"promote{version}", number, 5):
        state, seen = releases_of(root, "").state, versions_of(root)
        assert state.release.version in (None, 1, version)
        assert (state.release.version or 2) in state.loaded()["small_onnx"]
        if state.release.canary:
            assert seen == {1: "released", 2: "unchecked"}
            assert releases_of(root, "").rollback() == 1
            assert versions_of(root) == {1: "released", 2: "on disk"}
        releases_of(root, "").promote(version, max_drift_cosine=1e-3)
        assert versions_of(root)[version] == "released"


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
        pooled(triton.grpc_url) as running,
    ):
        if serving == 1:
            (unreleased.parent / "2").rename(second)
        releases = releases_of(unreleased, triton.grpc_url)
        with children.start(KILLED_IN_CHECK, unreleased, triton.grpc_url, version, int(number)) as child:
            told, _ = child.communicate()
        assert child.returncode == -number
        if number == signal.SIGINT:
            assert told == f"Version {version} was not promoted; what served before goes on serving\n"
            assert serving == 1 or config.read_text() == before
        elif version != serving:
            assert versions_of(unreleased) == {serving: "released", version: "unchecked"}
        with pooled(triton.grpc_url) as started:
            assert served_by(running, 20) == served_by(started, 20) == {serving: 20}
        if number == signal.SIGKILL and version != serving:
            assert releases.rollback() == serving
            assert served_by(running, 20) == {serving: 20}
        releases.promote(version, max_drift_cosine=1e-3)
        wait_until(lambda: served_by(running) == {version: 1})
        if version != serving:
            assert releases.rollback() == serving
            wait_until(lambda: served_by(running) == {serving: 1})


@pytest.mark.faults
def test_a_promotion_that_is_killed_during_its_check_leaves_the_release_and_can_be_repeated(
    repository: Path, triton: LocalTriton
) -> None:
    with children.start(KILLED_IN_CHECK, repository, triton.grpc_url, 2, 9) as child:
        assert child.wait() == -signal.SIGKILL
    with pooled(triton.grpc_url) as embedder:
        assert served_by(embedder, 20) == {1: 20}
        releases_of(repository, triton.grpc_url).promote(2, max_drift_cosine=1e-3)
        wait_until(lambda: served_by(embedder) == {2: 1})
