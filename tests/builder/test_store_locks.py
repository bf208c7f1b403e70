from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import pytest

from arcface_builder.repository.disk import locked
from arcface_builder.store import LocalStore
from arcface_builder.store.locks import building_lock
from support.processes import wait_until


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


def test_a_lock_is_held_by_one_and_another_engine_has_another(
    store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    entered = threading.Event()

    def enter() -> None:
        with building_lock(store.root, "one", "A plan"):
            entered.set()

    with building_lock(store.root, "one", "A plan"):
        with building_lock(store.root, "another", "Another"):
            pass
        second = threading.Thread(target=enter)
        second.start()
        wait_until(lambda: bool(caplog.messages))
        assert not entered.is_set()
    second.join()
    assert entered.is_set()
    assert caplog.messages == ["A plan is being built by another process; waiting for it."]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_in_a_cache_that_cannot_be_written_nothing_is_locked_and_that_is_said(
    number: int, store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("arcface_builder.store.locks.locked", refuse)
    with building_lock(store.root, "one", "A plan"):
        assert caplog.messages == [f"Nothing is locked in {store.root}/locks ({os.strerror(number)})."]


def test_a_lock_that_is_not_waited_for_is_refused(tmp_path: Path) -> None:
    held = locked(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        locked(tmp_path / "lock", wait=False)
    os.close(held)
    os.close(locked(tmp_path / "lock", wait=False))
