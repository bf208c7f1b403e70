"""The flags that this project gives tritonserver, and those that a user may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .errors import FlagError

# A model that cannot load does not stop the others, and configurations are complete as the builder
# writes them, so that no backend has to guess.
FLAGS: Final = ("--disable-auto-complete-config", "--exit-on-error=false", "--strict-readiness=false")

_OWN_FLAGS: Final = {
    "--backend-directory",
    *(f"--{name}-{noun}" for name in ("http", "grpc", "metrics") for noun in ("address", "port")),
    *(f"--allow-{name}" for name in ("http", "grpc", "metrics")),
}


def check_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """Check further flags for tritonserver.

    Raises:
        FlagError: A flag is one that this package sets itself.
    """
    for flag in flags:
        if flag.split("=")[0] in _OWN_FLAGS:
            raise FlagError(
                f"tritonserver's flag {flag} is set by arcface-server; its own flags choose host and ports."
            )
    return tuple(flags)
