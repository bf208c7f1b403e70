"""``arcface-builder engines``: list, pull, push, verify and prune stored plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arcface_client.cli.terminal import DONE, FAILED, UsageError, examples, print_json, progress, say
from arcface_client.contract import Progress
from arcface_client.settings import load_tensorrt_settings

from ..errors import OptionError, PlanDamagedError
from ..store import GPU, Entry, LocalStore, PlanStore, PruneRule, check_sm, open_store, sm_of
from .options import BUCKET_KEY, Bucket, CacheDir, Config, EndpointUrl, Json, Precision

if TYPE_CHECKING:  # boto3 is an extra
    from ..store.bucket import Bucket as S3Bucket

_FILTERS: Final = "Only these plans"
_OLD: Final = "made by an older version: build it again, or prune it"

engines = typer.Typer(
    no_args_is_help=True,
    help="Stored TensorRT plans: those in the local cache, and those in a bucket.",
    epilog=examples(
        "arcface-builder engines list --bucket plans",
        "arcface-builder engines pull --bucket plans --sm 86 --tensorrt-version 11.1.0.106",
        "arcface-builder engines prune --keep 2 --older-than-days 90 --dry-run",
    ),
)


def _architecture(text: str) -> str:
    try:
        return sm_of(text) if "." in text else check_sm(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error


Model = Annotated[str | None, typer.Option(metavar="NAME", help="Of this model.", rich_help_panel=_FILTERS)]
OfPrecision = Annotated[Precision | None, typer.Option(help="Of this precision.", rich_help_panel=_FILTERS)]
Sm = Annotated[
    str | None,
    typer.Option(
        parser=_architecture,
        metavar="SM",
        help="For this architecture, for example 86 (or 8.6).",
        rich_help_panel=_FILTERS,
    ),
]
Version = Annotated[
    str | None, typer.Option(metavar="VERSION", help="By this TensorRT.", rich_help_panel=_FILTERS)
]
Remote = Annotated[bool, typer.Option("--remote", help="The bucket's plans instead of the cache's.")]


@engines.command("list")
def list_(
    model: Model = None,
    precision: OfPrecision = None,
    sm: Sm = None,
    tensorrt_version: Version = None,
    config: Config = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """List the stored plans, and where they are."""
    wanted = _wanted(model, precision, sm, tensorrt_version)
    with progress("engines list", quiet=True) as report:
        store = _open(config, bucket, endpoint_url, cache_dir, report)
        found = [
            (entry, places) for entry, places in store.entries() if wanted.items() <= entry.labels.items()
        ]
    if json:
        print_json([asdict(entry.manifest) | {"places": places} for entry, places in found if entry.manifest])
        return
    if not found:
        say(f"The {store.places} has no {'such ' if wanted else ''}plan.")
    for entry, places in sorted(found, key=lambda pair: pair[0].path):
        if entry.manifest is None:
            say(entry.problem)
            continue
        key, size_mb = entry.manifest.identity, entry.manifest.plan_bytes / 1e6
        fits = f"{key.platform}, {key.settings[GPU]}" if GPU in key.settings else key.platform
        line = f"{entry.path}  {fits}  {size_mb:,.1f} MB  {entry.manifest.created_at:%Y-%m-%d}  "
        print(line + " and ".join(places) + (f"  ({_OLD})" if entry.is_old else ""))


@engines.command()
def pull(
    model: Model = None,
    precision: OfPrecision = None,
    sm: Sm = None,
    tensorrt_version: Version = None,
    config: Config = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> int:
    """Download plans from the bucket into the cache."""
    with progress("engines pull") as report:
        store = _open(config, bucket, endpoint_url, cache_dir, report)

        def download(entry: Entry) -> str:
            key = entry.usable_manifest().identity
            if store.local.find(key):
                return "already there"
            return "pulled" if store.pull(key) else "missing"

        wanted = _wanted(model, precision, sm, tensorrt_version)
        return _each(_bucket(store), wanted, download, as_json=json)


@engines.command()
def push(
    model: Model = None,
    precision: OfPrecision = None,
    sm: Sm = None,
    tensorrt_version: Version = None,
    config: Config = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace plans that the bucket has.")
    ] = False,
    json: Json = False,
) -> int:
    """Upload the cache's plans to the bucket."""
    with progress("engines push") as report:
        store = _open(config, bucket, endpoint_url, cache_dir, report)
        _bucket(store)

        def upload(entry: Entry) -> str:
            stored = store.local.check(entry)
            return "pushed" if store.push(stored, overwrite=overwrite) else "already there"

        wanted = _wanted(model, precision, sm, tensorrt_version)
        return _each(store.local, wanted, upload, as_json=json)


@engines.command()
def verify(
    model: Model = None,
    precision: OfPrecision = None,
    sm: Sm = None,
    tensorrt_version: Version = None,
    remote: Remote = False,
    config: Config = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> int:
    """Compare every plan's bytes with its manifest."""
    with progress("engines verify") as report:
        store = _open(config, bucket, endpoint_url, cache_dir, report, with_bucket=remote)
        place = _bucket(store) if remote else store.local

        def check(entry: Entry) -> str:
            if isinstance(place, LocalStore):
                place.check(entry)
            else:
                with store.local.staging() as folder:
                    place.download(entry, folder)
            return "whole"

        return _each(place, _wanted(model, precision, sm, tensorrt_version), check, as_json=json)


@engines.command()
def prune(
    model: Model = None,
    precision: OfPrecision = None,
    sm: Sm = None,
    tensorrt_version: Version = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Not the N newest of the same model, precision and architecture."
        ),
    ] = None,
    older_than_days: Annotated[
        float | None, typer.Option(min=0, max=1e6, metavar="DAYS", help="Built at least so long ago.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    remote: Remote = False,
    config: Config = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> int:
    """Remove the plans for which all conditions hold; --tensorrt-version is one."""
    try:
        rule = PruneRule(keep=keep, older_than_days=older_than_days, tensorrt_version=tensorrt_version)
    except OptionError as error:
        raise UsageError(str(error)) from error
    with progress("engines prune", quiet=True) as report:
        store = _open(config, bucket, endpoint_url, cache_dir, report, with_bucket=remote)
        place = _bucket(store) if remote else store.local
        # The newest are counted over all versions of TensorRT.
        counted = _wanted(model, precision, sm, None)
        entries = {
            entry.path: entry
            for entry in place.entries()
            if entry.manifest is not None and counted.items() <= entry.labels.items()
        }
        chosen = rule.choose(
            [entry.manifest for entry in entries.values() if entry.manifest], datetime.now(timezone.utc)
        )

        def removed() -> Iterator[dict[str, Any]]:
            for manifest in chosen:
                entry = entries[manifest.identity.key]
                if not dry_run:
                    place.remove(entry)
                yield _outcome(entry, "would be removed" if dry_run else "removed")

        _tell(removed(), as_json=json)
    if not chosen:
        say(f"The {place.name} has no {'such ' if entries or counted else ''}plan.")
    return DONE


def _open(
    config: Path | None,
    bucket: str | None,
    endpoint_url: str | None,
    cache_dir: Path | None,
    report: Progress,
    *,
    with_bucket: bool = True,
) -> PlanStore:
    settings = load_tensorrt_settings(config, arguments={BUCKET_KEY: bucket})
    name = settings.engine_s3_bucket if with_bucket else None
    return open_store(name, endpoint_url=endpoint_url, cache_dir=cache_dir, progress=report)


def _bucket(store: PlanStore) -> S3Bucket:
    if store.remote is None:
        raise OptionError(f"There is no bucket; name one with --bucket or {BUCKET_KEY} of the settings.")
    return store.remote


def _wanted(
    model: str | None, precision: str | None, sm: str | None, tensorrt_version: str | None
) -> dict[str, str]:
    given = {"model": model, "precision": precision, "sm": sm, "tensorrt_version": tensorrt_version}
    return {name: value for name, value in given.items() if value is not None}


def _each(
    place: LocalStore | S3Bucket, wanted: dict[str, str], action: Callable[[Entry], str], *, as_json: bool
) -> int:
    """Do something with every wanted plan of a place; a damaged one does not stop the others."""

    def outcomes() -> Iterator[dict[str, Any]]:
        for entry in place.entries():
            if not wanted.items() <= entry.labels.items():
                continue
            try:
                yield _outcome(entry, action(entry))
            except PlanDamagedError as error:
                yield _outcome(entry, "damaged", str(error))

    told = _tell(outcomes(), as_json=as_json)
    if not told:
        say(f"The {place.name} has no {'such ' if wanted else ''}plan.")
    failed = any(outcome["result"] in ("damaged", "missing") for outcome in told) or (wanted and not told)
    return FAILED if failed else DONE


def _outcome(entry: Entry, result: str, problem: str | None = None) -> dict[str, Any]:
    return {"key": entry.path, "result": result, "problem": problem}


def _tell(outcomes: Iterator[dict[str, Any]], *, as_json: bool) -> list[dict[str, Any]]:
    """Print outcomes as they come, or all of them as JSON, also where an error ends them early."""
    told = []
    try:
        for outcome in outcomes:
            told.append(outcome)
            if not as_json:
                print(f"{outcome['result']}: {outcome['problem'] or outcome['key']}", flush=True)
    finally:
        if as_json:
            print_json(told)
    return told
