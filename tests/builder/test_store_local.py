from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from arcface_builder.errors import CacheError, PlanDamagedError, PlanError, PlanGoneError, PlanSchemaError
from arcface_builder.store import DamagedManifest, LocalStore, PlanIdentity, PlanManifest, StoredPlan
from support.children import run
from support.engines import IDENTITY, identity, manifest, plan


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


def files(store: LocalStore) -> list[str]:
    """Every file of the cache but its locks, which stay."""
    found = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "locks")


def test_what_was_stored_is_found_byte_for_byte(store: LocalStore) -> None:
    added = store.add(plan(), manifest())

    assert store.find(IDENTITY) == added == StoredPlan(store.root / IDENTITY.key, manifest())
    assert added.path.read_bytes() == plan()
    assert files(store) == [IDENTITY.key, f"{IDENTITY.key}.json"]


def test_nothing_is_found_in_a_cache_that_is_not_there(store: LocalStore) -> None:
    assert store.find(IDENTITY) is None
    assert list(store.manifests()) == []
    assert not store.root.exists()


def test_only_the_same_identity_is_found(store: LocalStore) -> None:
    store.add(plan(), manifest())
    assert store.find(identity(precision="int8")) is None


def test_a_plan_that_is_not_what_its_manifest_says_is_not_stored(store: LocalStore) -> None:
    with pytest.raises(PlanDamagedError):
        store.add(plan(seed=1), manifest())
    assert not store.root.exists()


def test_an_engine_is_never_changed(store: LocalStore) -> None:
    first = store.add(plan(), manifest())
    second = store.add(plan(seed=1), manifest(plan(seed=1)))
    assert second == first
    assert second.path.read_bytes() == plan()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the plan": flip,
    "the plan's end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "the plan": lambda path: path.unlink(),
    "the manifest": lambda path: path.with_name(path.name + ".json").write_text("{"),
    "another's manifest": lambda path: path.with_name(path.name + ".json").write_text(
        manifest(of=identity(sm="90")).to_json()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_removed_with_a_warning_and_can_be_stored_again(
    store: LocalStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](store.add(plan(), manifest()).path)

    assert store.find(IDENTITY) is None

    (warning,) = caplog.messages
    assert IDENTITY.filename in warning
    assert files(store) == []
    assert store.add(plan(), manifest()).path.read_bytes() == plan()


def test_a_damaged_engine_gives_way_to_a_good_one(store: LocalStore) -> None:
    flip(store.add(plan(), manifest()).path)
    store.add(plan(seed=1), manifest(plan(seed=1)))
    found = store.find(IDENTITY)
    assert found is not None
    assert found.path.read_bytes() == plan(seed=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_engine_that_is_mended_while_it_is_judged_is_not_removed(
    store: LocalStore, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGES[damage](store.add(plan(), manifest()).path)
    judge, others = LocalStore._checked, LocalStore(store.root)

    def judge_slowly(self: LocalStore, path: Path, key: str) -> StoredPlan:
        try:
            return judge(self, path, key)
        except PlanError:
            if self is store:
                others.add(plan(seed=1), manifest(plan(seed=1)))
            raise

    monkeypatch.setattr(LocalStore, "_checked", judge_slowly)

    found = store.find(IDENTITY)

    assert found is not None
    assert found.path.read_bytes() == plan(seed=1)
    assert files(store) == [IDENTITY.key, f"{IDENTITY.key}.json"]


def test_an_engine_that_is_completed_while_another_is_stored_is_not_removed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(plan(), manifest()).path.unlink()
    find, others = LocalStore.find, LocalStore(store.root)

    def find_slowly(self: LocalStore, wanted: PlanIdentity) -> StoredPlan | None:
        found = find(self, wanted)
        if found is None and self is store:
            others.add(plan(seed=1), manifest(plan(seed=1)))
        return found

    monkeypatch.setattr(LocalStore, "find", find_slowly)

    assert store.add(plan(), manifest()).path.read_bytes() == plan(seed=1)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_plan_that_goes_after_it_was_listed_is_not_damaged(store: LocalStore, replaced: bool) -> None:
    store.add(plan(), manifest())
    (listed,) = store.manifests()
    assert isinstance(listed, PlanManifest)
    LocalStore(store.root).remove(listed)
    if replaced:
        store.add(plan(seed=1), manifest(plan(seed=1)))

    with pytest.raises(PlanGoneError, match="was removed or replaced while it was looked at"):
        store.check(listed)


def test_a_plan_that_another_version_replaced_after_it_was_listed_is_that_versions(store: LocalStore) -> None:
    stored = store.add(plan(), manifest())
    stored.path.write_bytes(plan(seed=1))
    record = stored.path.with_name(f"{stored.path.name}.json")
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))

    with pytest.raises(PlanSchemaError):
        store.check(stored.manifest)


def test_a_plan_that_is_put_back_while_it_is_looked_for_is_not_damaged(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.add(plan(), manifest())
    away = stored.path.parent.rename(tmp_path / "away")
    has = LocalStore._has

    def back_again(self: LocalStore, listed: PlanManifest) -> bool:
        away.rename(stored.path.parent)
        return has(self, listed)

    monkeypatch.setattr(LocalStore, "_has", back_again)

    assert store.check(stored.manifest) == stored


@pytest.mark.parametrize("missing", ["", ".json"], ids=["plan", "manifest"])
def test_half_an_engine_is_none(store: LocalStore, missing: str) -> None:
    path = store.add(plan(), manifest()).path
    path.with_name(path.name + missing).unlink()
    assert store.find(IDENTITY) is None
    assert store.add(plan(), manifest()).path.read_bytes() == plan()


def test_a_listing_shows_good_and_damaged_engines_and_checks_them_on_request(store: LocalStore) -> None:
    good = store.add(plan(), manifest())
    altered_plan = store.add(plan(), manifest(of=identity(sm="89")))
    bad_manifest = store.add(plan(), manifest(of=identity(sm="90")))
    flip(altered_plan.path)
    bad_manifest.path.with_name(bad_manifest.path.name + ".json").write_text("[]")

    listed = list(store.manifests())

    assert good.manifest in listed
    assert altered_plan.manifest in listed
    (damaged,) = (manifest for manifest in listed if isinstance(manifest, DamagedManifest))
    assert damaged.key == bad_manifest.manifest.identity.key
    assert store.check(good.manifest) == good
    with pytest.raises(PlanDamagedError, match="SHA-256"):
        store.check(altered_plan.manifest)
    altered_plan.path.unlink()
    with pytest.raises(PlanDamagedError, match="missing beside its manifest"):
        store.check(altered_plan.manifest)


def test_an_engine_that_goes_while_the_cache_is_listed_is_left_out(store: LocalStore) -> None:
    store.add(plan(), manifest())
    store.add(plan(), manifest(of=identity(sm="90")))
    listing = store.manifests()
    next(listing)
    shutil.rmtree(store.root)
    assert list(listing) == []


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from arcface_builder.errors import CacheError
from arcface_builder.store import LocalStore
from support.engines import manifest, plan
content = plan(2_000_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    LocalStore(Path(sys.argv[1])).add(content, manifest(content))
except CacheError as error:
    print(error)
"""
    printed = run(code, tmp_path)
    assert printed.startswith(f"No space left in the cache {tmp_path} (File too large); make room")
    assert printed.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_is_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    store = LocalStore(tmp_path / "cache")
    with pytest.raises(CacheError, match=r"Cannot read the cache .*ARCFACE_CACHE_DIR"):
        store.find(IDENTITY)
    with pytest.raises(CacheError, match="Cannot write the cache"):
        store.add(plan(), manifest())


def test_what_a_killed_process_left_is_swept_after_a_day(store: LocalStore) -> None:
    left = store.root / "staging" / "left"
    fresh = store.root / "staging" / "fresh"
    for folder in (left, fresh):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))

    store.add(plan(), manifest())

    assert not left.exists()
    assert fresh.exists()


def test_a_process_that_is_killed_in_the_middle_leaves_no_engine(store: LocalStore) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from arcface_builder.store import LocalStore
from support.engines import IDENTITY, plan
with LocalStore(Path(sys.argv[1])).staging() as folder:
    (folder / IDENTITY.filename).write_bytes(plan())
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run(code, store.root)

    assert any((store.root / "staging").iterdir())
    assert store.find(IDENTITY) is None
    assert list(store.manifests()) == []


def test_many_writers_at_once_store_one_whole_engine(store: LocalStore) -> None:
    contents = [plan(200_000, seed=seed) for seed in range(8)]
    writers = [threading.Thread(target=store.add, args=(content, manifest(content))) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = store.find(IDENTITY)
        assert found is None or found.path.read_bytes() in contents
    found = store.find(IDENTITY)
    assert found is not None
    assert len(files(store)) == 2


def test_plans_in_linked_folders_are_listed(store: LocalStore, tmp_path: Path) -> None:
    store.add(plan(), manifest())
    folder = store.root / "engines"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")

    assert list(store.manifests()) == [manifest()]


def test_what_has_come_in_the_place_of_a_listed_plan_is_not_removed(store: LocalStore) -> None:
    store.add(plan(), manifest())
    (listed,) = store.manifests()
    assert not isinstance(listed, DamagedManifest)
    newer = plan(seed=1)
    store.add(newer, manifest(newer), lambda found: "A newer one is asked for.")

    assert not store.remove(listed)
    assert store.find(IDENTITY) == StoredPlan(store.root / IDENTITY.key, manifest(newer))

    assert store.remove(manifest(newer))
    assert store.find(IDENTITY) is None
    assert files(store) == []


def test_what_another_version_stored_is_neither_removed_nor_replaced(store: LocalStore) -> None:
    path = store.add(plan(), manifest()).path
    record = path.with_name(path.name + ".json")
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    newer = plan(seed=1)

    with pytest.raises(CacheError, match=r"schema_version 2; expected 1\. Another version .* ARCFACE_"):
        store.find(IDENTITY)
    with pytest.raises(CacheError, match="schema_version 2"):
        store.add(newer, manifest(newer))
    (found,) = store.manifests()
    assert isinstance(found, DamagedManifest)
    assert path.read_bytes() == plan()


def test_a_plan_that_cannot_be_read_while_it_is_judged_stays(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(plan(), manifest())

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="Too many open files"):
        patch.setattr(LocalStore, "_checked", fail)
        store.remove(manifest(plan(seed=1)))

    assert list(store.manifests()) == [manifest()]


def test_ctrl_c_while_a_plan_is_judged_leaves_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = plan(seed=1)
    store.add(newer, manifest(newer))
    judged: list[Path] = []
    check = LocalStore._checked

    def interrupted(self: LocalStore, path: Path, key: str) -> StoredPlan:
        judged.append(path)
        if len(judged) == 2:  # the first time it is where it belongs
            raise KeyboardInterrupt
        return check(self, path, key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalStore, "_checked", interrupted)
        store.remove(manifest(newer))

    assert judged[0] == store.root / IDENTITY.key != judged[1]
    assert store.find(IDENTITY) == StoredPlan(store.root / IDENTITY.key, manifest(newer))


def test_what_the_system_refuses_others_is_not_the_caches(store: LocalStore) -> None:
    with pytest.raises(OSError, match="libcudart") as refused, store.staging():
        raise OSError("libcudart.so.13: cannot open shared object file")
    assert type(refused.value) is OSError
