"""A server's temporary folder, which goes with the server, or with the next one that starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "arcface-server-"
_LOCK: Final = "lock"


@contextmanager
def server_folder() -> Iterator[Path]:
    """Make a folder for as long as the context lasts, and remove those of processes that were killed."""
    import fcntl  # which Windows lacks

    for lock_path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        # It cannot be locked while its process lives, and may be gone at any time.
        with suppress(OSError):
            if lock_path.stat().st_uid == os.getuid():
                with lock_path.open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock_path.parent)
    owner_pid = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with (folder / "unlocked").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # By this name it is looked for: it has to be locked before it has it.
            (folder / "unlocked").rename(folder / _LOCK)
            yield folder
    finally:
        if os.getpid() == owner_pid:  # a forked process leaves the server what it needs
            shutil.rmtree(folder)
