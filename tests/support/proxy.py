"""A network that fails on demand: a TCP proxy on this machine, between a client and a server."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 16 << 10
_BUFFER_BYTES = 64 << 10
_LOCALHOST = "127.0.0.1"


class Proxy:
    """Passes bytes on in both directions, until it is told to do otherwise.

    Args:
        url: ``host:port`` of the server.

    Attributes:
        cut_after_bytes: A connection is cut after so many bytes in one direction.
        was_cut: How many connections were cut so.
    """

    def __init__(self, url: str) -> None:
        host, _, port = url.rpartition(":")
        self._server = (host, int(port))
        self._lock = threading.Lock()
        self._links: set[tuple[socket.socket, socket.socket]] = set()
        self._is_cut = False
        self._bytes_per_s = math.inf
        self._flows = threading.Event()
        self._flows.set()
        self._closed = threading.Event()
        self._listener = socket.socket()
        # Small buffers, since what lies in them is under way already. Accepted sockets inherit them.
        _shrink(self._listener)
        self._listener.bind((_LOCALHOST, 0))
        self._listener.listen()
        self.url = f"{_LOCALHOST}:{self._listener.getsockname()[1]}"
        self.cut_after_bytes = math.inf
        self.was_cut = 0
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Break all connections off, and every new one."""
        with self._lock:
            self._is_cut = True
            for link in self._links:
                _break_off(link)
        try:
            yield
        finally:
            self._is_cut = False

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Pass nothing on; what was sent meanwhile arrives afterwards."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @contextmanager
    def slow(self, bytes_per_s: float) -> Iterator[None]:
        """Pass on at most so many bytes a second on each connection, in each direction."""
        self._bytes_per_s = bytes_per_s
        try:
            yield
        finally:
            self._bytes_per_s = math.inf

    def __enter__(self) -> Proxy:
        self._acceptor.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._flows.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for link in self._links:
                _break_off(link)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket()
        _shrink(server)
        link = (client, server)
        with client, server:
            with self._lock:
                if self._is_cut or self._closed.is_set():
                    return
                self._links.add(link)
            try:
                server.connect(self._server)
                back = threading.Thread(target=self._pump, args=(server, client, link), daemon=True)
                back.start()
                self._pump(client, server, link)
                back.join()
            except OSError:
                pass  # The server is away, so the client's connection ends.
            finally:
                with self._lock:
                    self._links.discard(link)

    def _pump(
        self, source: socket.socket, sink: socket.socket, link: tuple[socket.socket, socket.socket]
    ) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                passed += len(data)
                if passed >= self.cut_after_bytes:
                    self.was_cut += 1
                    break
                self._flows.wait()
                if math.isfinite(self._bytes_per_s):
                    self._closed.wait(len(data) / self._bytes_per_s)
                sink.sendall(data)
        _break_off(link)


def _shrink(end: socket.socket) -> None:
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        end.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER_BYTES)


def _break_off(link: tuple[socket.socket, socket.socket]) -> None:
    for end in link:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
