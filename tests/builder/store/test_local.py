from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from arcface_builder.errors import PlanDamagedError
from arcface_builder.store.local import LocalStore
from arcface_builder.store.stored import StoredPlan
from support.children import run
from support.engines import KEY, manifest, plan, plan_file, plan_key


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


@pytest.fixture
def add(store: LocalStore, tmp_path: Path) -> Callable[..., StoredPlan]:
    def store_plan(content: bytes | None = None, **of: str) -> StoredPlan:
        return store.add(plan_file(tmp_path / "built", content), manifest(content, plan_key(**of)))

    return store_plan


def files(store: LocalStore) -> list[str]:
    found = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "locks")


def test_a_stored_plan_is_found_byte_for_byte(store: LocalStore, add: Callable[..., StoredPlan]) -> None:
    added = add()

    assert store.find(KEY) == added == StoredPlan(store.root / KEY.key, manifest())
    assert added.path.read_bytes() == plan()
    assert files(store) == [KEY.key, f"{KEY.key}.json"]
    assert store.find(plan_key(max_drift_cosine=0.0005)) is None


def test_a_plan_is_written_once(add: Callable[..., StoredPlan]) -> None:
    first = add()

    assert add(plan(seed=1)) == first
    assert first.path.read_bytes() == plan()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def record_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the plan": flip,
    "the plan's end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "the plan is missing": lambda path: path.unlink(),
    "the manifest": lambda path: record_of(path).write_text("{"),
    "another plan's manifest": lambda path: record_of(path).write_text(
        manifest(of=plan_key(sm="90")).to_json()
    ),
}


@pytest.mark.parametrize("look", [True, False], ids=["found", "replaced"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_removed_with_a_warning_and_can_be_stored_again(
    damage: str,
    look: bool,
    store: LocalStore,
    add: Callable[..., StoredPlan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    DAMAGES[damage](add().path)

    if look:
        assert store.find(KEY) is None
        assert files(store) == []
    assert add(plan(seed=1)).path.read_bytes() == plan(seed=1)

    (warning,) = caplog.messages
    assert KEY.filename in warning


def test_a_list_has_good_and_damaged_plans(store: LocalStore, add: Callable[..., StoredPlan]) -> None:
    good, altered, broken = add(), add(sm="89"), add(sm="90")
    flip(altered.path)
    record_of(broken.path).write_text("[]")

    entries = {entry.labels["sm"]: entry for entry in store.entries()}

    assert {sm: entry.manifest for sm, entry in entries.items()} == {
        "86": good.manifest,
        "89": altered.manifest,
        "90": None,
    }
    assert store.check(entries["86"]) == good
    with pytest.raises(PlanDamagedError, match="SHA-256"):
        store.check(entries["89"])
    with pytest.raises(PlanDamagedError, match=broken.manifest.identity.key):
        store.check(entries["90"])
    for entry in entries.values():
        store.remove(entry)
    assert files(store) == []


STORE = """
import os, sys
from pathlib import Path
from arcface_builder.store.local import LocalStore
from support.children import die_at
from support.engines import manifest, plan_file

for step in range(40):
    store = LocalStore(Path(sys.argv[1]) / str(step))
    built = plan_file(store.root / "built")
    child = os.fork()
    if not child:
        die_at(step)
        store.add(built, manifest())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status == 0:
        break
"""
"""Stores a plan in processes that are killed at each of its steps in the file system in turn."""


def test_a_plan_is_there_whole_or_not_at_all_whenever_its_process_is_killed(tmp_path: Path) -> None:
    *killed, last = map(int, run(STORE, tmp_path).split())
    assert (set(killed), last) == ({-signal.SIGKILL}, 0)
    outcomes = []
    for step in range(len(killed) + 1):
        store = LocalStore(tmp_path / str(step))
        listed = list(store.entries())
        found = store.find(KEY)
        assert (found is not None) == bool(listed)
        assert found is None or found.path.read_bytes() == plan()
        outcomes.append(found is not None)
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]


def test_what_a_killed_process_left_is_removed_after_a_day(
    store: LocalStore, add: Callable[..., StoredPlan]
) -> None:
    left, fresh = store.root / "staging" / "left", store.root / "staging" / "fresh"
    for folder in (left, fresh):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))

    add()

    assert not left.exists()
    assert fresh.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import errno, sys
from pathlib import Path
from arcface_builder.errors import CacheError
from arcface_builder.store import local
from arcface_builder.store.local import LocalStore
from support.engines import manifest, plan_file
def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")
local.flush = full
root = Path(sys.argv[1])
try:
    LocalStore(root).add(plan_file(root), manifest())
except CacheError as error:
    print(error)
"""
    printed = run(code, tmp_path)
    assert printed.startswith(
        f"Cannot use the cache {tmp_path} ([Errno 28] No space left on device); make room"
    )
    assert printed.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
