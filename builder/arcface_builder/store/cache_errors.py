"""What the system refuses the local cache, as errors of this project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CacheError
from ..repository.disk import NO_SPACE


@contextmanager
def cache_errors(root: Path, verb: str) -> Iterator[None]:
    """Raise what goes wrong in the block as an error of the cache.

    Args:
        root: The cache's folder.
        verb: What the block does to it, "read" or "write", for messages.

    Raises:
        CacheError: The system refused it, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CacheError(
                f"No space left in the cache {root} ({error.strerror}); make room, e.g. with "
                "`arcface-builder engines prune`, or set ARCFACE_CACHE_DIR. The plan was not stored."
            ) from error
        raise CacheError(
            f"Cannot {verb} the cache {root} ({error}); mend it or set ARCFACE_CACHE_DIR."
        ) from error
