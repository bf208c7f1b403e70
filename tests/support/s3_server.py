"""An S3 that speaks HTTP on this machine."""

from __future__ import annotations

import urllib.request

import boto3
from moto.server import ThreadedMotoServer

from arcface_builder.store.bucket import Bucket


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

    def __exit__(self, *error: object) -> None:
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
