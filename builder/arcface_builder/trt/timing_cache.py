"""TensorRT's timing cache in a file: what it measured of kernels, for the next build.

A cache is good for one TensorRT and one kind of GPU. TensorRT compares the GPU; the version is written
before its bytes, and a cache of another version is left out and then replaced.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from arcface_client.cli.output import check_output, replacing
from arcface_client.errors import InputError

from ..errors import OptionError

_log = logging.getLogger(__name__)

_MAGIC: Final = b"arcface-timing-cache "


def check_timing_cache(path: Path) -> None:
    """Check that a file can be a timing cache, before the build whose end writes it; nothing is made.

    Raises:
        InputError: It cannot be read, or it, or the folders that it is to be in, cannot be written.
    """
    _read(path)
    made = path  # or the first of the folders that are missing: it is made when there is something to write
    while not made.parent.exists():
        made = made.parent
    if not made.parent.is_dir():
        raise OptionError(
            f"The timing cache {path} cannot be written: {made.parent} is no folder; name another file."
        )
    check_output(made)


def _read(path: Path) -> bytes:
    """What the file holds; nothing if there is none. Anything else than a timing cache is left alone."""
    try:
        if not path.exists():
            return b""
        if not path.is_file():
            raise OptionError(f"The timing cache {path} is no regular file; name a file.")
        content = path.read_bytes()
    except OSError as error:
        raise OptionError(
            f"The timing cache {path} cannot be read: {error.strerror or error}; name another file."
        ) from error
    if content and not content.startswith(_MAGIC):
        raise OptionError(
            f"{path} is no timing cache of arcface-builder, which would overwrite it; name another file."
        )
    return content


class TimingCache:
    """What one build has to go by, and what it leaves.

    Args:
        trt: The TensorRT module.
        path: The file, if there is to be one; it need not exist.
        timings: What a build before left, in place of a file's content.

    Attributes:
        state: What was there was good for, in a few words; "none" if nothing was asked for.
    """

    def __init__(self, trt: ModuleType, path: Path | None = None, timings: bytes = b"") -> None:
        self._path = path
        self._timings = timings
        self._head = _MAGIC + f"{trt.__name__} {trt.__version__}\n".encode()
        self._cache: Any = None  # a build must not outlive it
        self.state = "none" if path is None else "cold"

    def attach(self, config: Any) -> None:
        """Give a build what there is, if it fits.

        Raises:
            OptionError: It cannot be read, is a folder or no timing cache, or there can be no such file.
        """
        content = self._timings or (_read(self._path) if self._path else b"")
        blob = content.removeprefix(self._head) if content.startswith(self._head) else b""
        if content and not blob:
            self.state = "cold: the file is of another TensorRT"
        if blob:
            self._cache = config.create_timing_cache(blob)
            if self._cache is not None and config.set_timing_cache(self._cache, ignore_mismatch=False):
                self.state = "warm"
                return
            self.state = "cold: the file is of another GPU"
        self._cache = config.create_timing_cache(b"")
        config.set_timing_cache(self._cache, ignore_mismatch=False)

    def save(self, config: Any) -> bytes:
        """Write what the build measured, so that the file is the old one or the new one at any moment.

        A file that cannot be written is a warning: the plan is worth more than it.

        Returns:
            What is to be given to another build.
        """
        content = self._head + bytes(config.get_timing_cache().serialize())
        if self._path is None:
            return content
        try:
            _read(self._path)  # what another process put there meanwhile is its own
            self._path.resolve().parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file:
                file.write(content)
        except (OSError, InputError) as error:
            _log.warning("Cannot write the timing cache (%s); the next build measures again", error)
        return content
