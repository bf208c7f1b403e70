"""``arcface-builder engines``: list, pull, push, verify and prune stored plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from arcface_client.cli.terminal import (
    DONE,
    FAILED,
    UsageError,
    checked,
    examples,
    print_json,
    progress,
    say,
    with_shared_options,
)
from arcface_client.contract import Progress, no_progress
from arcface_client.settings import load_tensorrt_settings

from ..errors import OptionError, PlanDamagedError
from ..store.local import LocalStore
from ..store.plan_store import PlanStore, open_store, prunable
from ..store.stored import GPU, Entry, sm_of
from .options import BUCKET_KEY, Bucket, CacheDir, Config, EndpointUrl, Json, Precision

if TYPE_CHECKING:  # boto3 is an extra
    from ..store.bucket import Bucket as S3Bucket

engines = typer.Typer(
    no_args_is_help=True,
    help="List, share, verify and remove the TensorRT plans in the local cache and in a bucket.",
    epilog=examples(
        "arcface-builder engines list --bucket plans",
        "arcface-builder engines pull --bucket plans --sm 86 --tensorrt-version 11.1.0.106",
        "arcface-builder engines prune --keep 2 --older-than-days 90 --dry-run",
    ),
)


_filter = partial(typer.Option, rich_help_panel="Only these plans")
Remote = Annotated[bool, typer.Option("--remote", help="The bucket's plans instead of the cache's.")]


@dataclass(frozen=True)
class _Plans:
    """What every verb is told: which plans it is for, and where they are."""

    model: Annotated[str | None, _filter(metavar="NAME", help="Of this model.")] = None
    precision: Annotated[Precision | None, _filter(help="Of this precision.")] = None
    sm: Annotated[
        str | None,
        _filter(parser=checked(sm_of), metavar="SM", help="For this architecture, for example 86 (or 8.6)."),
    ] = None
    tensorrt_version: Annotated[str | None, _filter(metavar="VERSION", help="By this TensorRT.")] = None
    config: Config = None
    bucket: Bucket = None
    endpoint_url: EndpointUrl = None
    cache_dir: CacheDir = None
    json: Json = False

    def open(self, report: Progress, *, with_bucket: bool = True) -> PlanStore:
        """Open the store; without the bucket, boto3 is not needed."""
        settings = load_tensorrt_settings(self.config, arguments={BUCKET_KEY: self.bucket})
        return open_store(
            settings.engine_s3_bucket if with_bucket else None,
            endpoint_url=self.endpoint_url,
            cache_dir=self.cache_dir,
            progress=report,
        )

    def place(self, report: Progress, *, remote: bool) -> tuple[PlanStore, LocalStore | S3Bucket]:
        """Open the store, and choose its cache or its bucket."""
        store = self.open(report, with_bucket=remote)
        return store, _bucket(store) if remote else store.local

    def wanted(self, *, by_any_tensorrt: bool = False) -> dict[str, str]:
        """The labels that an entry must have."""
        version = None if by_any_tensorrt else self.tensorrt_version
        given = {"model": self.model, "precision": self.precision, "sm": self.sm, "tensorrt_version": version}
        return {name: value for name, value in given.items() if value is not None}


@engines.command("list")
@with_shared_options
def list_(plans: _Plans) -> None:
    """List the stored plans, and where they are."""
    wanted = plans.wanted()
    store = plans.open(no_progress)
    found = [(entry, places) for entry, places in store.entries() if wanted.items() <= entry.labels.items()]
    if plans.json:
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
        print(line + " and ".join(places))


@engines.command()
@with_shared_options
def pull(plans: _Plans) -> int:
    """Download plans from the bucket into the cache."""
    with progress("engines pull") as report:
        store = plans.open(report)

        def download(entry: Entry) -> str:
            key = entry.usable_manifest().identity
            if store.local.find(key):
                return "already there"
            return "pulled" if store.pull(key) else "missing"

        return _every_wanted(_bucket(store), plans, download)


@engines.command()
@with_shared_options
def push(
    plans: _Plans,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace plans that the bucket has.")
    ] = False,
) -> int:
    """Upload the cache's plans to the bucket."""
    with progress("engines push") as report:
        store = plans.open(report)
        bucket = _bucket(store)

        def upload(entry: Entry) -> str:
            stored = store.local.check(entry)
            return "pushed" if bucket.push(stored, overwrite=overwrite) else "already there"

        return _every_wanted(store.local, plans, upload)


@engines.command()
@with_shared_options
def verify(plans: _Plans, remote: Remote = False) -> int:
    """Compare every plan's bytes with its manifest."""
    with progress("engines verify") as report:
        store, place = plans.place(report, remote=remote)

        def check(entry: Entry) -> str:
            if isinstance(place, LocalStore):
                place.check(entry)
            else:
                with store.local.staging() as folder:
                    place.download(entry, folder)
            return "whole"

        return _every_wanted(place, plans, check)


@engines.command()
@with_shared_options
def prune(
    plans: _Plans,
    keep: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Keep the N newest plans of each model, precision and architecture."
        ),
    ] = None,
    older_than_days: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e6, metavar="DAYS", help="Only plans that were built at least this many days ago."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    remote: Remote = False,
) -> None:
    """Remove the plans that all conditions allow: --keep, --older-than-days and those below."""
    if (keep, older_than_days, plans.tensorrt_version) == (None, None, None):
        raise UsageError("Nothing to prune by; give --keep, --older-than-days or --tensorrt-version.")
    _, place = plans.place(no_progress, remote=remote)
    # The newest are counted over all versions of TensorRT.
    counted = plans.wanted(by_any_tensorrt=True)
    entries = {entry.path: entry for entry in place.entries() if counted.items() <= entry.labels.items()}
    manifests = [entry.manifest for entry in entries.values() if entry.manifest]
    old = prunable(
        manifests,
        datetime.now(timezone.utc),
        keep=keep or 0,
        older_than_days=older_than_days or 0.0,
        tensorrt_version=plans.tensorrt_version,
    )

    def remove(entry: Entry) -> str:
        if not dry_run:
            place.remove(entry)
        return "would be removed" if dry_run else "removed"

    if not _each((entries[manifest.identity.key] for manifest in old), plans, remove):
        say(f"The {place.name} has no {'such ' if manifests or counted else ''}plan.")


def _bucket(store: PlanStore) -> S3Bucket:
    if store.remote is None:
        raise OptionError(f"There is no bucket; name one with --bucket or {BUCKET_KEY} of the settings.")
    return store.remote


def _every_wanted(place: LocalStore | S3Bucket, plans: _Plans, action: Callable[[Entry], str]) -> int:
    """Do something with every wanted plan of a place; returns the exit code."""
    wanted = plans.wanted()
    told = _each(
        (entry for entry in place.entries() if wanted.items() <= entry.labels.items()), plans, action
    )
    if not told:
        say(f"The {place.name} has no {'such ' if wanted else ''}plan.")
    failed = any(outcome["result"] in ("damaged", "missing") for outcome in told) or (wanted and not told)
    return FAILED if failed else DONE


def _each(
    entries: Iterable[Entry], plans: _Plans, action: Callable[[Entry], str]
) -> list[dict[str, str | None]]:
    """Do something with plans; a damaged one does not stop the others.

    Each outcome is printed as it comes, or all of them as JSON, also where an error ends them early.
    """
    told = []
    try:
        for entry in entries:
            problem = None
            try:
                result = action(entry)
            except PlanDamagedError as error:
                result, problem = "damaged", str(error)
            told.append({"key": entry.path, "result": result, "problem": problem})
            if not plans.json:
                print(f"{result}: {problem or entry.path}", flush=True)
    finally:
        if plans.json:
            print_json(told)
    return told
