"""S3's answers, told from those of what is none: a login page, another port, a server that only redirects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final, TypeVar

from botocore.awsrequest import AWSResponse

from ..errors import BucketError, PlanManifestError

Answer = TypeVar("Answer", bound=Mapping[str, object])

_MAX_MANIFEST_BYTES: Final = 1 << 20
_REDIRECTS: Final = (301, 302, 307)


def checked(answer: Answer, *, has: str, place: str) -> Answer:
    """Return an answer that has what S3's always have; a proxy's login page comes with 200, too.

    Args:
        answer: As boto3 gives it.
        has: The key that it must have.
        place: The bucket, as ``bucket 'plans'``, for the message.

    Raises:
        BucketError: It has not.
    """
    if has not in answer:
        raise BucketError(
            f"The {place} does not answer as S3 does; check the endpoint's URL, and whether a proxy wants a "
            "login; or the answer was cut off: try again."
        )
    return answer


def manifest_text(answer: Mapping[str, Any], *, key: str, place: str) -> bytes:
    """Read the manifest that an answer brings.

    Raises:
        BucketError: It is no answer of S3.
        PlanManifestError: It is too long to be a manifest.
    """
    checked(answer, has="ETag", place=place)
    with closing(answer["Body"]) as body:
        if answer["ContentLength"] > _MAX_MANIFEST_BYTES:
            raise PlanManifestError(
                f"The manifest of {key} in the {place} has {answer['ContentLength']:,} bytes; expected a few."
            )
        text: bytes = body.read()  # to the end: a limit here would hide that it broke off
    return text


def refuse_redirects(s3: Any, place: str) -> None:
    """Let a client end what goes round in a circle, with a BucketError.

    Where an answer redirects and names no region, botocore asks for the bucket's; and so again, where that
    is redirected, too.

    Args:
        s3: A client of boto3's.
        place: The bucket, as ``bucket 'plans'``, for the message.
    """

    def check(response: tuple[AWSResponse, object] | None, **_: object) -> None:
        if response is None:
            return
        answer = response[0]
        if answer.status_code in _REDIRECTS and "x-amz-bucket-region" not in answer.headers:
            raise BucketError(
                f"The {place} redirects every request; check --endpoint-url (https, not http?) and the "
                "region."
            )

    s3.meta.events.register_first("needs-retry.s3.HeadBucket", check)
