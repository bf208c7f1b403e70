"""Buckets that cannot be used: each says in one line what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import botocore
import pytest

from arcface_builder.errors import BucketError, BucketUnreachableError
from arcface_builder.store import LocalStore, PlanStore, StoredPlan
from arcface_builder.store.identity import release_of
from arcface_builder.store.s3 import S3Store
from support.engines import IDENTITY, manifest, plan
from support.s3_server import S3Server, answering, hasty, redirecting


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "cache")


@pytest.fixture
def engine(store: LocalStore) -> StoredPlan:
    return store.add(plan(), manifest())


@pytest.fixture
def bucket(s3: S3Server) -> S3Store:
    return S3Store("plans", endpoint_url=s3.url)


@pytest.mark.usefixtures("s3")  # its credentials
@pytest.mark.parametrize(
    "page", [b"", b"<html><body>Welcome! Please sign in.</body></html>"], ids=["empty", "login"]
)
def test_a_server_that_is_no_s3_is_told(page: bytes, store: LocalStore, engine: StoredPlan) -> None:
    with answering(200, page) as url:
        bucket = hasty(url)
        for use in (
            lambda: list(bucket.manifests()),
            lambda: bucket.find(IDENTITY),
            lambda: bucket.upload(engine),
            lambda: PlanStore(store, bucket).push(engine.manifest, overwrite=True),
        ):
            with pytest.raises(BucketError, match=r"does not answer as S3 does; check the endpoint's URL"):
                use()


def test_a_password_in_the_endpoints_url_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://user:s3cret@127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for given in (None, url):
        with pytest.raises(BucketError, match="holds a user or a password") as refused:
            S3Store("plans", endpoint_url=given)
        assert "s3cret" not in str(refused.value)


@pytest.mark.usefixtures("s3")  # its credentials
@pytest.mark.parametrize(
    ("status", "told"),
    [(301, "redirects every request"), (302, "redirects every"), (307, "redirects every"), (308, "HTTP 308")],
)
def test_an_endpoint_that_redirects_everything_is_told(status: int, told: str) -> None:
    with redirecting(status) as url, pytest.raises(BucketError, match=told):
        hasty(url).find(IDENTITY)


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("status", "code", "kind", "told"),
    [
        (503, "SlowDown", BucketUnreachableError, r"does not work at the moment \(SlowDown .*try again"),
        (429, "TooManyRequests", BucketUnreachableError, "does not work at the moment .*try again"),
        (400, "RequestTimeout", BucketUnreachableError, "does not work at the moment .*try again"),
        (400, "ExpiredToken", BucketError, r"credentials .* are not good any more \(ExpiredToken .*new ones"),
        (403, "ExpiredTokenException", BucketError, "credentials .* are not good any more"),
        (400, "InvalidToken", BucketError, "credentials .* are not good any more"),
        (400, "TokenRefreshRequired", BucketError, "credentials .* are not good any more"),
        (403, "RequestTimeTooSkewed", BucketError, r"does not take this machine's time .* set its clock"),
        (400, "RequestExpired", BucketError, r"does not take this machine's time .* set its clock"),
        (400, "InvalidRequest", BucketError, "refused a request .*; check its region and --endpoint-url"),
    ],
)
def test_an_answer_that_is_an_error_says_what_to_do(
    status: int, code: str, kind: type[Exception], told: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    with answering(status, body) as url, pytest.raises(kind, match=told):
        hasty(url).find(IDENTITY)


@pytest.mark.skipif(
    release_of(botocore.__version__) < (1, 36), reason="botocore compares checksums of answers from 1.36 on"
)
@pytest.mark.usefixtures("s3")
def test_what_was_garbled_on_the_way_is_worth_another_try() -> None:
    body = manifest().to_json().encode()
    with (
        answering(200, body, {"ETag": '"1"', "x-amz-checksum-crc32": "AAAAAA=="}) as url,
        pytest.raises(BucketUnreachableError, match=r"Expected checksum AAAAAA== .*try again"),
    ):
        hasty(url).find(IDENTITY)


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_ENDPOINT_URL", "foo"), ("AWS_DEFAULT_REGION", "bad region!")]
)
def test_settings_of_boto3_that_cannot_be_are_told(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BucketError, match=rf"Cannot use the bucket 'plans'.*{value}.*; expected an endpoint"):
        S3Store("plans")


def test_a_missing_bucket_is_told(s3: S3Server, engine: StoredPlan) -> None:
    missing = S3Store("nowhere", endpoint_url=s3.url)
    attempts = (
        lambda: missing.find(IDENTITY),
        lambda: list(missing.manifests()),
        lambda: missing.upload(engine),
    )
    for attempt in attempts:
        with pytest.raises(BucketError, match=r"^There is no bucket 'nowhere' at .*; create it"):
            attempt()


def test_a_forbidden_bucket_is_told_with_the_rights_that_it_takes(
    s3: S3Server, bucket: S3Store, engine: StoredPlan, tmp_path: Path
) -> None:
    bucket.upload(engine)
    s3.check_rights_from_now_on(True)
    attempts = (
        lambda: bucket.find(IDENTITY),
        lambda: list(bucket.manifests()),
        lambda: bucket.download(engine.manifest, tmp_path),
        lambda: bucket.upload(engine),
        lambda: bucket.remove(engine.manifest),
    )
    for attempt in attempts:
        with pytest.raises(BucketError, match=r"is forbidden to these credentials .* s3:GetObject"):
            attempt()


def test_missing_credentials_are_told(bucket: S3Store, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BucketError, match=r"There are no credentials for .*AWS_ACCESS_KEY_ID"):
        S3Store("plans", endpoint_url=s3.url).find(IDENTITY)


@pytest.mark.parametrize(("name", "endpoint"), [("s3://plans", None), ("plans", "localhost")])
def test_a_bucket_or_endpoint_that_is_none_is_told(name: str, endpoint: str | None) -> None:
    with pytest.raises(BucketError, match="expected"):
        S3Store(name, endpoint_url=endpoint).find(IDENTITY)
