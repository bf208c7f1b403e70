"""A bucket of S3, or of anything that speaks its protocol: connection, errors, progress.

This module needs boto3; it is imported when a bucket is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError

from arcface_client.contract import Progress, no_progress

from .errors import BucketError


class S3Bucket:
    """A bucket. Credentials, region and endpoint come from where boto3 looks for them.

    Args:
        name: The bucket's name.
        endpoint_url: Another service than Amazon's; None takes ``$AWS_ENDPOINT_URL`` or Amazon's.
        progress: Receives the name of a transfer and the share that is done.
        connect_timeout_s: Time allowed to connect, each time.
        read_timeout_s: Time allowed between two pieces of an answer.
        attempts: How often botocore tries a request, with growing pauses.

    Raises:
        BucketError: The endpoint or region cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        endpoint_url: str | None = None,
        progress: Progress = no_progress,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 20.0,
        attempts: int = 4,
    ) -> None:
        self._bucket = name
        self.name = f"bucket {name!r}"
        self._progress = progress
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
        )
        with self._errors(""):
            self._s3 = Session().client("s3", endpoint_url=endpoint_url, config=config)

    def _report(self, name: str, size_bytes: int) -> Callable[[int], None]:
        """What boto3 calls, from several threads, with the bytes that have just moved."""
        pieces: list[int] = []

        def moved(count: int) -> None:
            pieces.append(count)
            self._progress(name, min(1.0, sum(pieces) / size_bytes))

        return moved

    def _read(self, name: str) -> tuple[bytes, str] | None:
        """An object's content and its tag; None if there is none."""
        with self._errors(name):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=name)
                return answer["Body"].read(), answer["ETag"]
            except ClientError as error:
                if is_missing(error):
                    return None
                raise

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Pass on what S3 answers, in one line with bucket and key."""
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError, ValueError) as error:
            where = f"{self.name}, key {name}" if name else self.name
            raise BucketError(f"S3, {where}: {' '.join(str(error).split())}") from error


def is_missing(error: BaseException | None) -> bool:
    """Whether S3 answered that there is no such object."""
    return isinstance(error, ClientError) and _code(error) in ("NoSuchKey", "404")


def was_overtaken(error: BaseException | None) -> bool:
    """Whether S3 refused a conditional write, since another one was faster."""
    overtaken = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
    return isinstance(error, ClientError) and _code(error) in overtaken


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code"))
