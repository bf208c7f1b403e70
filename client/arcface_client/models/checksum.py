"""SHA-256 of files, which may be larger than the memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
