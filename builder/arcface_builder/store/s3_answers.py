"""What answers in the place of S3: a proxy's login page, another port, a server that only redirects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from botocore.awsrequest import AWSResponse

from ..errors import BucketError

Answer = TypeVar("Answer", bound=Mapping[str, object])

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
            "login."
        )
    return answer


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
