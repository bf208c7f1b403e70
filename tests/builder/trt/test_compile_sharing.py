"""Builders that share a cache, and caches that take nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from arcface_builder.compile import compile_plan
from arcface_builder.errors import CacheError, RepositoryError
from arcface_builder.plan_request import PlanRequest
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.store import PlanStore
from arcface_builder.store.local import LocalStore
from arcface_builder.trt.options import BuildOptions
from support.absent_gpu import AbsentGpu, unable
from support.processes import wait_until

pytestmark = pytest.mark.usefixtures("few_crops")


def test_where_nothing_can_be_stored_nothing_is_built(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def refused(self: LocalStore) -> Iterator[Path]:
        raise CacheError("Cannot write the cache.")
        yield

    monkeypatch.setattr(LocalStore, "staging", refused)
    with pytest.raises(CacheError, match="Cannot write the cache"):
        compile_plan(request_, unable(gpu), store, repository)


READ_ONLY_CACHE = """
import subprocess
import sys
from pathlib import Path
from arcface_builder.errors import CacheError
from arcface_builder.store import LocalStore
from arcface_builder.store.locks import building_lock
root = sys.argv[1]
subprocess.run(["mount", "--bind", root, root], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
store = LocalStore(Path(root))
with building_lock(store.root, "name", "A plan"):
    (manifest,) = store.manifests()
    assert store.find(manifest.identity)
    print("held")
try:
    with store.staging():
        pass
except CacheError as error:
    print(type(error).__name__)
"""


def test_a_plan_of_a_cache_that_is_read_only_is_taken(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    elsewhere: ModelRepository,
) -> None:
    compile_plan(request_, gpu, store, elsewhere)
    in_a_namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*in_a_namespace, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace")

    command = [*in_a_namespace, sys.executable, "-c", READ_ONLY_CACHE, str(store.local.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["held", "CacheError"]


def test_who_would_build_another_plan_for_an_architecture_waits_and_builds_nothing(
    request_: PlanRequest,
    gpu: AbsentGpu,
    store: PlanStore,
    repository: ModelRepository,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(stage: str, done: float | None) -> None:
        begun.set()
        assert may_go_on.wait(60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(compile_plan, request_, gpu, store, repository, report=slowly)
        assert begun.wait(60)
        other = replace(request_, options=BuildOptions(precision="fp32"))
        second = pool.submit(compile_plan, other, unable(gpu), store, repository)
        try:
            wait_until(lambda: any("is being built by another process" in said for said in caplog.messages))
        finally:
            may_go_on.set()
        assert first.result().added.is_new

        with pytest.raises(RepositoryError, match="has a plan for sm86 already"):
            second.result()
