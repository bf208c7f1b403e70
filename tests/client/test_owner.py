"""Whose shared memory it is, and what becomes of that of processes that were killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcface_client.triton.owner import REMEMBERED_S, Owner, dead_owners
from arcface_client.triton.region import FOLDER
from support import children

pytestmark = pytest.mark.faults

HERE = "here.test:8001"
ELSEWHERE = "elsewhere.test:8001"

OWN_AND_WAIT = """
import sys, time
from arcface_client.triton.owner import Owner

owner = Owner(sys.argv[1])
print(owner.region(1).name, flush=True)
time.sleep(60)
"""


def left_by_one_who_was_killed(url: str) -> tuple[Path, Path]:
    """The region and the lock file of a process that was killed before it had shared the region."""
    with children.start(OWN_AND_WAIT, url) as child:
        assert child.stdout is not None
        region = FOLDER / child.stdout.readline().strip()
        child.kill()
    lock = region.with_name(f"{region.name.rpartition('-')[0]}.lock")
    assert region.exists()
    assert lock.exists()
    return region, lock


@pytest.fixture
def alive() -> Iterator[list[Path]]:
    """The region and the lock file of an owner that lives."""
    owner = Owner(HERE)
    region = FOLDER / owner.region(1).name
    yield [region, region.with_name(f"{region.name.rpartition('-')[0]}.lock")]
    owner.close()
    assert not region.exists()
    assert not list(dead_owners(HERE))


def test_of_a_dead_owner_the_name_is_told_and_the_memory_is_given_back(alive: list[Path]) -> None:
    region, lock = left_by_one_who_was_killed(HERE)
    with pytest.raises(RuntimeError):
        for name in dead_owners(HERE):
            raise RuntimeError(name)  # as when the server does not answer
    assert list(dead_owners(HERE)) == [lock.stem]
    assert not region.exists()
    assert not lock.exists()
    assert all(path.exists() for path in alive)


def test_of_another_servers_owner_the_lock_stays_for_that_servers_next_client_but_not_for_ever(
    alive: list[Path],
) -> None:
    region, lock = left_by_one_who_was_killed(ELSEWHERE)
    created = time.time() - 2 * REMEMBERED_S
    os.utime(lock, (created, created))
    for _ in range(2):
        assert not list(dead_owners(HERE))
        assert not region.exists()
        assert lock.exists(), "as old as it is, it was found a moment ago"
    found = time.time() - REMEMBERED_S - 1
    os.utime(lock, (found, found))
    assert not list(dead_owners(HERE))
    assert not lock.exists()
    assert all(path.exists() for path in alive)


def test_that_servers_next_client_is_told(alive: list[Path]) -> None:
    _, lock = left_by_one_who_was_killed(ELSEWHERE)
    assert not list(dead_owners(HERE))
    assert list(dead_owners(ELSEWHERE)) == [lock.stem]
    assert not lock.exists()


def test_a_lock_file_is_locked_before_anybody_can_take_it_for_a_dead_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "nobody.test:8001"
    names = f"arcface-client-{hashlib.sha256(url.encode()).hexdigest()[:8]}-*.lock"
    lock, seen = fcntl.flock, []

    def look_and_lock(descriptor: int, operation: int) -> None:
        seen.append(list(FOLDER.glob(names)))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look_and_lock)
    owner = Owner(url)
    assert seen == [[]]
    assert len(list(FOLDER.glob(names))) == 1
    owner.close()
    assert not list(FOLDER.glob(names))
