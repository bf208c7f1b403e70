"""An S3 that speaks HTTP on this machine, and a wire to it that can be made bad."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from types import TracebackType
from typing import Final

import boto3
from moto.server import ThreadedMotoServer

from arcface_builder.store.bucket import Bucket

_PIECE_BYTES: Final = 16384


class BadWire:
    """A TCP proxy between a client and a server; its faults are set while it runs.

    Attributes:
        cut_after_bytes: Connections are cut once the server has said so much on them; None leaves them.
        cut_upload_after_bytes: They are cut once the client has said so much on one; None leaves them.
        cuts: How many connections may still be cut after what the server said; None is any number.
        bytes_per_s: How fast what the server says goes through; None is at once.
    """

    def __init__(self, port: int) -> None:
        self.cut_after_bytes: int | None = None
        self.cut_upload_after_bytes: int | None = None
        self.cuts: int | None = None
        self.bytes_per_s: float | None = None
        self.was_cut = 0
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> BadWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        said = 0
        with contextlib.suppress(OSError):
            while piece := client.recv(_PIECE_BYTES):
                said += len(piece)
                if self.cut_upload_after_bytes is not None and said >= self.cut_upload_after_bytes:
                    self.was_cut += 1
                    client.shutdown(socket.SHUT_RDWR)
                    break
                server.sendall(piece)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        said = 0
        with server, client, contextlib.suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                said += len(piece)
                if self._cuts_at(said):
                    client.sendall(piece[: len(piece) // 2])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                if self.bytes_per_s:
                    time.sleep(len(piece) / self.bytes_per_s)
                client.sendall(piece)

    def _cuts_at(self, said_bytes: int) -> bool:
        if self.cut_after_bytes is None or said_bytes < self.cut_after_bytes or self.cuts == 0:
            return False
        if self.cuts is not None:
            self.cuts -= 1
        self.was_cut += 1
        return True


class S3Server:
    """Moto's S3 over HTTP, and a client of the tests' own to look into it."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    def __enter__(self) -> S3Server:
        self._server.start()
        _, self.port = self._server.get_host_and_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client("s3", endpoint_url=self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop()

    def check_rights_from_now_on(self, check: bool) -> None:
        """Whether to look at credentials, which moto otherwise does not."""
        self._post("reset-auth", b"0" if check else b"inf")

    def empty(self) -> None:
        """Forget every bucket, and the rights."""
        self.check_rights_from_now_on(False)
        self._post("reset", b"")

    def keys(self, bucket: str) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=bucket)
        return [item["Key"] for item in answer.get("Contents", ())]

    def _post(self, path: str, body: bytes) -> None:
        plain = {"Content-Type": "text/plain"}  # moto does not read a form's body
        request = urllib.request.Request(f"{self.url}/moto-api/{path}", body, plain, method="POST")
        with urllib.request.urlopen(request):
            pass


def hasty(url: str) -> Bucket:
    """A bucket that gives up soon."""
    return Bucket("plans", endpoint_url=url, connect_timeout_s=1, read_timeout_s=1, attempts=1)
