"""Swap two folders in one step, where the system can: then nobody ever sees one of them missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

# Of linux/fcntl.h and linux/fs.h.
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def exchange(left: Path, right: Path) -> None:
    """Let two paths of one file system change places.

    Raises:
        OSError: The paths cannot change places, or the system or file system does not know how.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(left)) from error
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(left), None, str(right))
