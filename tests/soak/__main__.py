"""Load from several threads on real servers, with random faults and releases all the while.

Two embedders, one with a model in this process as well and one without, share two servers. A third one
spreads its calls over three servers whose release changes (``rollout``). Every embedding is compared with
what it must be; when every fault is over, the embedders must come back to their first choice. The exit code
is 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from arcface_client.backends.pooled import TritonBackend
from arcface_client.failover.replica import Intervals
from support.processes import open_files, wait_until
from support.siblings import NAME, local_tiny, tiny_embeddings, write_siblings

from .load import Faces, Subject
from .rollout import Rollout
from .site import Site, trouble
from .tally import Tally

USERS = 2
"""Threads that use each embedder."""

OPEN_FILES = 3
"""How many more files and sockets may be open at the end: gRPC's own epoll and event descriptors."""

BRISK = Intervals(
    recheck_s=0.5,
    liveness_s=0.5,
    prove_again_s=10.0,
    refused_again_s=1.0,
    cooldown_s=1.0,
    longest_cooldown_s=5.0,
)
"""So that ten minutes see many turns."""


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="of faults and calls (default: another one each time)")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"soak: {arguments.minutes:g} minutes, seed {seed}", file=sys.stderr)
    tally = soak(60 * arguments.minutes, seed)
    print(tally.text())
    return 0 if tally.passed else 1


def soak(seconds: float, seed: int) -> Tally:
    """Run servers, users and faults for so long, and count."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        right = write_siblings(folder / "right", max_batch_size=8)
        wrong = write_siblings(folder / "wrong", max_batch_size=8, skew=0.1)
        crops = np.random.default_rng(seed).integers(0, 256, (500, 7, 7, 3), np.uint8)
        crops = crops.repeat(16, axis=1).repeat(16, axis=2)
        faces = Faces(crops, tiny_embeddings(folder, crops))
        sites = [
            stack.enter_context(Site(right, wrong, folder / f"server-{number}.log")) for number in (1, 2)
        ]
        open_before = open_files(os.getpid())
        with ExitStack() as embedders:
            subjects = []
            for local in ([local_tiny(folder)], []):
                embedder = embedders.enter_context(
                    TritonBackend([site.url for site in sites], NAME, intervals=BRISK, local=local)
                )
                subjects.append(Subject(embedder, bool(local), tally))
                embedder.ensure_ready()
            rollout = embedders.enter_context(Rollout(folder / "rollout", crops, BRISK, tally))
            _run(sites, subjects, rollout, faces, tally, seconds, seed)
            for subject in subjects:
                subject.comes_back_to(sites[0].url, faces)
                tally.fallbacks.update(subject.embedder.diagnostics().counters["fallbacks"])
            rollout.check()
        _check_left(tally, open_before)
    return tally


def _run(
    sites: Sequence[Site],
    subjects: Sequence[Subject],
    rollout: Rollout,
    faces: Faces,
    tally: Tally,
    seconds: float,
    seed: int,
) -> None:
    until = time.monotonic() + seconds
    ended = threading.Event()

    def make_trouble(number: int, site: Site) -> None:
        def noticed() -> None:
            for subject in subjects:
                subject.notices_that_it_is_gone(site.url)

        def told(fault: str) -> None:
            tell(f"server {number}: {fault}")

        trouble(site, random.Random(f"{seed} trouble {number}"), until=until, noticed=noticed, tell=told)

    def tell(what: str) -> None:
        print(f"{until - time.monotonic():6.1f} s left, {what}", file=sys.stderr)
        tally.happened(what.partition(": ")[2].partition(" (")[0])

    def use(subject: Subject, number: int) -> None:
        subject.use(faces, random.Random(f"{seed} user {number} {subject.has_local}"), ended.is_set)

    with ThreadPoolExecutor(len(sites) + USERS * len(subjects) + rollout.THREADS) as pool:
        troubles, users = rollout.start(pool, seed, until, ended, tell)
        troubles += [pool.submit(make_trouble, number, site) for number, site in enumerate(sites, 1)]
        users += [pool.submit(use, subject, number) for subject in subjects for number in range(USERS)]
        try:
            for each in concurrent.futures.as_completed(troubles):
                each.result()
        finally:
            ended.set()
        for each in users:
            each.result()


def _check_left(tally: Tally, open_before: list[str]) -> None:
    """Note what closed embedders left behind in this process."""
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("arcface-")]
    if threads:
        tally.bug(f"Threads of closed embedders still run: {', '.join(threads)}.")

    def more() -> int:
        return len(open_files(os.getpid())) - len(open_before)

    # gRPC closes its sockets with a delay.
    with suppress(AssertionError):
        wait_until(lambda: more() <= OPEN_FILES)
    if more() > OPEN_FILES:
        new = sorted(set(open_files(os.getpid())) - set(open_before))
        tally.bug(f"{more()} more files and sockets are open than before; new are {', '.join(new)}.")


if __name__ == "__main__":
    sys.exit(main())
