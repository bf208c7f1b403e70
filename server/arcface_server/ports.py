"""Ports to listen on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from .errors import PortError


def reserve_ports(host: str, wanted: Sequence[int | None]) -> list[int]:
    """Choose ports that can be listened on.

    The ports are free when this returns; another process may still take one before it is used.

    Args:
        host: Address to listen on.
        wanted: A port for each place, or None for any free one.

    Returns:
        One port for each place.

    Raises:
        PortError: A wanted port is in use, or the address is none of this machine's.
    """
    with ExitStack() as stack:  # All stay bound until all are chosen, so that none is chosen twice.
        # The wanted ones first, or a free one might be one of them.
        bound = {
            index: stack.enter_context(_bind(host, port or 0))
            for index, port in sorted(enumerate(wanted), key=lambda item: item[1] is None)
        }
        return [bound[index].getsockname()[1] for index in range(len(wanted))]


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of a server that has just ended do not keep its port from being used again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # Two sockets may be bound to one port; only one can listen.
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortError(
                f"Port {port} on {host} is in use; stop what listens there, or choose another port."
            ) from error
        raise PortError(
            f"Cannot listen on {host}:{port} ({error}); "
            "expected an address of this machine and a port this user may open."
        ) from error
    return listener
