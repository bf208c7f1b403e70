"""``arcface-builder publish`` and ``pull``: a family of models in a bucket."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcface_client.cli.terminal import print_json, progress
from arcface_client.contract import Progress
from arcface_client.errors import require

from ..build import DEFAULT_REPOSITORY
from ..repository.publish import ModelRepository
from .options import ENDPOINT_HELP, Json, Name, Repository

if TYPE_CHECKING:
    from ..repository.remote import RemoteRepository

EndpointUrl = Annotated[str | None, typer.Option(metavar="URL", help=ENDPOINT_HELP)]
Url = Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="The model repository in the bucket.")]


def publish(
    url: Url,
    name: Name,
    repository: Repository = DEFAULT_REPOSITORY,
    endpoint_url: EndpointUrl = None,
    json: Json = False,
) -> None:
    """Upload a family of models to a bucket, laid out as Triton reads it.

    Versions are uploaded once and never changed; the index that names their files and SHA-256 comes last. If
    the command is interrupted, run it again: it goes on where it was. Credentials and region come from where
    boto3 looks for them.
    """
    with progress(f"publish {name}") as report:
        done = _remote(url, endpoint_url, report).publish(ModelRepository(repository), name)
    _tell(asdict(done), f"{name} is in {url}", json)


def pull(
    url: Url,
    name: Name,
    repository: Repository = DEFAULT_REPOSITORY,
    endpoint_url: EndpointUrl = None,
    json: Json = False,
) -> None:
    """Download a family of models from a bucket into a model repository, and verify every file.

    What is there already is not downloaded again. A version appears whole or not at all.
    """
    with progress(f"pull {name}") as report:
        done = _remote(url, endpoint_url, report).pull(ModelRepository(repository), name)
    _tell(asdict(done), f"{name} is in {repository}", json)


def _remote(url: str, endpoint_url: str | None, report: Progress) -> RemoteRepository:
    module = require(
        "arcface_builder.repository.remote", extra="s3", purpose="a model repository in a bucket"
    )
    remote: RemoteRepository = module.RemoteRepository(url, endpoint_url=endpoint_url, progress=report)
    return remote


def _tell(done: dict[str, Any], where: str, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        there = f"{done['there']} files were there already"
        print(f"{where}: {done['files']} files moved ({done['bytes'] / 1e6:,.1f} MB), {there}")
