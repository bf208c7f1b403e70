"""What botocore raises, told as this project's errors: by code and class, never by its text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError

from ..errors import BucketError, BucketUnreachableError

_MISSING_KEY: Final = {"NoSuchKey", "404"}
_STALE_TOKEN: Final = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_WRONG_TIME: Final = {"RequestTimeTooSkewed", "RequestExpired"}
_TOO_SLOW: Final = "RequestTimeout"  # the client was; S3 says so with 400
_FORBIDDEN: Final = 403
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


def is_missing(error: ClientError) -> bool:
    """Whether S3 says that there is no such object."""
    return _code(error) in _MISSING_KEY


@contextmanager
def bucket_errors(place: str) -> Iterator[None]:
    """Raise what goes wrong in the block as an error of this project.

    Args:
        place: The bucket, as ``bucket 'plans'``, for messages.

    Raises:
        BucketUnreachableError: Nothing answers, or not in time, or the connection broke off or garbled it.
        BucketError: The bucket is missing, forbidden or misnamed, or there are no credentials that are good.
    """
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, place) from error
    except (
        ConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
        RetriesExceededError,
    ) as error:
        last = getattr(error, "last_exception", error)
        raise BucketUnreachableError(
            f"Cannot reach the {place} ({_one_line(last)}); "
            "check the network and --endpoint-url, and try again."
        ) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise BucketError(
            f"There are no credentials for the {place} ({_one_line(error)}); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        ) from error
    except ParamValidationError as error:
        raise BucketError(f"There can be no {place}; expected a name as my-bucket.") from error
    except BotoCoreError as error:
        raise BucketError(f"Cannot use the {place}: {_one_line(error)}") from error


def _from_answer(error: ClientError, place: str) -> BucketError | BucketUnreachableError:
    code = _code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return BucketError(f"There is no {place}; create it, or name another (--bucket).")
    if code in _STALE_TOKEN:
        return BucketError(
            f"The credentials for the {place} are not good any more ({code} at {error.operation_name}); "
            "get new ones (`aws sso login`, or another AWS_SESSION_TOKEN with its keys)."
        )
    if code in _WRONG_TIME:
        return BucketError(f"The {place} does not take this machine's time ({code}); set its clock.")
    if status == _FORBIDDEN:
        return BucketError(
            f"The {place} is forbidden to these credentials ({code} at {error.operation_name}); "
            "expected the rights s3:ListBucket, s3:GetObject and s3:PutObject (s3:DeleteObject to prune)."
        )
    said = f"{code} at {error.operation_name}, HTTP {status}"
    if status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS or code == _TOO_SLOW:
        return BucketUnreachableError(f"The {place} does not work at the moment ({said}); try again.")
    return BucketError(f"The {place} refused a request ({said}); check its region and --endpoint-url.")


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code") or "no code"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
