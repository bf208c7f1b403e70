"""What the model repository and the cache of engines both ask of a disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that is full."""


def flush(path: Path) -> None:
    """Have a file or a folder on the disk, not in its cache alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
