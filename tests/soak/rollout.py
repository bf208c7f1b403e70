"""Releases that change under load: three servers of one repository, of which one at a time fails."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import onnx

from arcface_builder.build import build
from arcface_builder.check import crops as check_crops
from arcface_builder.release import Releases
from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.remote import RemoteRepository
from arcface_builder.source.load import OnnxFile
from arcface_client.backends.pooled import TritonBackend
from arcface_client.contract import Crops
from arcface_client.errors import ArcFaceError
from arcface_client.failover.replica import Intervals
from arcface_client.models.files import sha256_of
from arcface_client.models.repository import LocalModels
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.exports import small_arcface
from support.s3_server import S3Server

from .load import Faces, Subject, within
from .site import CRASH, Site
from .tally import Tally

NAME = "small"
MODEL = "small_onnx"
SERVERS = 3
MAX_DRIFT = 1e-3
SHARE = 0.2
SETTLED_S = 60.0
URL = "s3://models/faces"

Tell = Callable[[str], object]


class Rollout:
    """Servers, an embedder that spreads its calls over them, and releases of two equal versions.

    Args:
        folder: For the repository and the servers' logs.
        crops: What the embedder is called with.
        intervals: The embedder's.
        tally: Counts what comes of the calls.
    """

    THREADS: Final = 4

    def __init__(self, folder: Path, crops: Crops, intervals: Intervals, tally: Tally) -> None:
        self._root, self._folder, self._tally = folder / "models", folder, tally
        self._crops, self._intervals = crops, intervals
        self._stack = ExitStack()

    def __enter__(self) -> Rollout:
        self._folder.mkdir()
        check_crops.LEAST_CROPS = 32
        onnx.save_model(small_arcface(), self._folder / "source.onnx")
        for _ in range(2):
            build(OnnxFile(self._folder / "source.onnx"), name=NAME, repository=self._root)
        path = LocalModels(self._root).onnx(NAME).path
        self._releases([]).promote(1, max_drift_cosine=MAX_DRIFT)
        self._sites = [
            self._stack.enter_context(Site(self._root, self._root, self._folder / f"release-{number}.log"))
            for number in range(1, SERVERS + 1)
        ]
        self._urls = [site.url for site in self._sites]
        embedder = TritonBackend(
            self._urls, NAME, intervals=self._intervals, spread=True, records=LocalModels(self._root)
        )
        self._embedder = self._stack.enter_context(embedder)
        self._embedder.ensure_ready()
        self._faces = Faces(self._crops, OnnxRuntime(path).embed(self._crops))
        os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        self._s3 = self._stack.enter_context(S3Server())
        self._s3.client.create_bucket(Bucket="models")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(
        self, pool: ThreadPoolExecutor, seed: int, until: float, ended: threading.Event, tell: Tell
    ) -> tuple[list[Future[None]], list[Future[None]]]:
        """Start the releases and the faults, which end at ``until``, and the users."""
        subject = Subject(self._embedder, True, self._tally)  # two servers are always there: no call fails
        chances = [random.Random(f"{seed} rollout {number}") for number in range(self.THREADS)]
        return (
            [
                pool.submit(self._decide, chances[0], until, tell),
                pool.submit(self._trouble, chances[1], until, tell),
            ],
            [pool.submit(subject.use, self._faces, chance, ended.is_set) for chance in chances[2:]],
        )

    def check(self) -> None:
        """With every fault over, promote the newest version, and see that it gets every call."""
        self._releases(self._urls).promote(2, max_drift_cosine=MAX_DRIFT)

        def only_it() -> bool:
            served = self._embedder.encode(self._faces.crops, return_source=True)[1]
            return {source.version for source in served.sources} == {2}

        if not within(SETTLED_S, only_it):
            self._tally.bug(f"Version 2 did not get every call within {SETTLED_S:g} s of its promotion.")

    def _releases(self, urls: list[str]) -> Releases:
        return Releases(ModelRepository(self._root), NAME, urls)

    def _decide(self, chance: random.Random, until: float, tell: Tell) -> None:
        """Promote, try as a canary, roll back, publish: whatever the servers let happen."""
        verbs: dict[str, Callable[[], object]] = {
            "canary": lambda: self._releases(self._urls).promote(2, max_drift_cosine=MAX_DRIFT, share=SHARE),
            "promote": lambda: self._releases(self._urls).promote(2, max_drift_cosine=MAX_DRIFT),
            "roll back": lambda: self._releases(self._urls).rollback(),
            "publish and pull": self._publish_and_pull,
        }
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.2, 3))
            verb = chance.choice(list(verbs))
            try:
                verbs[verb]()
            except ArcFaceError as error:  # a server is away, or there is nothing to roll back
                tell(f"release: {verb} refused ({error})")
            else:
                tell(f"release: {verb}")

    def _publish_and_pull(self) -> None:
        remote, copy = RemoteRepository(URL, endpoint_url=self._s3.url), self._folder / "pulled"
        remote.publish(ModelRepository(self._root), NAME)
        remote.pull(ModelRepository(copy), NAME)
        for version in ("1", "2"):
            ours, theirs = (root / MODEL / version / "model.onnx" for root in (self._root, copy))
            if sha256_of(ours) != sha256_of(theirs):
                self._tally.bug(f"{theirs} was pulled with other bytes than were published.")
        shutil.rmtree(copy)

    def _trouble(self, chance: random.Random, until: float, tell: Tell) -> None:
        """Let one server at a time die, hang or be cut off."""
        while time.monotonic() < until:
            time.sleep(chance.uniform(1, 6))
            number = chance.randrange(SERVERS)
            site = self._sites[number]
            faults = {"kill": site.killed, "hang": site.hung, "cut the network": site.proxy.cut}
            fault = chance.choice(list(faults))
            tell(f"release server {number + 1}: {fault}")
            with faults[fault]():
                time.sleep(chance.uniform(0.2, 6))
            if site.has_crashed:
                tell(f"release server {number + 1}: {CRASH}")
                site.revive()
