"""An HTTP/2 proxy that refuses requests above a size with 413, as nginx does."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _WINDOW_UPDATE = 0, 1, 3, 8
_END_STREAM_AND_HEADERS = 0x5
_STATUS_413 = b"\x08\x03413"
"""HPACK: ":status" by its number in the static table, and the value as a literal."""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class SizeProxy:
    """Passes gRPC on to a server, request by request.

    Args:
        url: ``host:port`` of the server.
        largest_bytes: The largest request that passes.

    Attributes:
        url: The proxy's own address.
        refused: How many requests it has refused.
    """

    def __init__(self, url: str, largest_bytes: int) -> None:
        host, _, port = url.rpartition(":")
        self._server = (host, int(port))
        self._largest_bytes = largest_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.refused = 0
        self._links: list[socket.socket] = []

    def accept(self) -> None:
        """Take connections until the proxy is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._links += [client, server]
                lock = threading.Lock()  # of what is sent to the client
                for pump in (self._upload, self._download):
                    threading.Thread(target=pump, args=(client, server, lock), daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for link in (self._listener, *self._links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _upload(self, client: socket.socket, server: socket.socket, lock: threading.Lock) -> None:
        sizes: Counter[int] = Counter()
        with suppress(OSError), client.makefile("rb") as source:
            server.sendall(source.read(len(_PREFACE)))
            while head := source.read(9):
                length, stream = int.from_bytes(head[:3], "big"), int.from_bytes(head[5:9], "big")
                kind = head[3]
                payload = source.read(length)
                before = sizes[stream]
                sizes[stream] += length if kind == _DATA else 0
                if sizes[stream] <= self._largest_bytes:
                    server.sendall(head + payload)
                    continue
                answer = b""
                if kind == _DATA:  # the server will not give this part of the window back
                    answer = _frame(_WINDOW_UPDATE, 0, 0, length.to_bytes(4, "big"))
                is_new = before <= self._largest_bytes
                if is_new:
                    self.refused += 1
                    answer += _frame(_HEADERS, _END_STREAM_AND_HEADERS, stream, _STATUS_413)
                with lock:
                    client.sendall(answer)
                if is_new:  # afterwards, since the server may answer to this
                    server.sendall(_frame(_RST_STREAM, 0, stream, (8).to_bytes(4, "big")))

    def _download(self, client: socket.socket, server: socket.socket, lock: threading.Lock) -> None:
        with suppress(OSError), server.makefile("rb") as source:
            while head := source.read(9):
                payload = source.read(int.from_bytes(head[:3], "big"))
                with lock:
                    client.sendall(head + payload)


@contextmanager
def size_limit(url: str, largest_bytes: int) -> Iterator[SizeProxy]:
    """A proxy before a server, which takes requests of so many bytes at most."""
    proxy = SizeProxy(url, largest_bytes)
    acceptor = threading.Thread(target=proxy.accept, daemon=True)
    acceptor.start()
    try:
        yield proxy
    finally:
        proxy.close()
        acceptor.join()
