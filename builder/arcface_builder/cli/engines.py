"""``arcface-builder engines``: list, pull, push, verify and prune stored plans."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final, TypeAlias

from arcface_client.cli.commandline import DONE, FAILED
from arcface_client.models.embedding_space import PRECISIONS
from arcface_client.settings import load_tensorrt_settings

from ..errors import OptionError, PlanError, PlanGoneError, PlanSchemaError
from ..store import DamagedManifest, LocalStore, PlanManifest, PlanStore
from ..store.identity import GPU_MODEL, KEY_PARTS, key_parts
from ..store.place import readable
from ..store.pruning import PruneRule
from .architectures import architecture
from .outcomes import Outcome, tell
from .storing import BUCKET_KEY, add_storing, store_from

if TYPE_CHECKING:  # boto3 is an extra
    from ..store.s3 import S3Store

_EPILOG: Final = """\
examples:
  arcface-builder engines list --bucket plans
  arcface-builder engines pull --bucket plans --sm 86 --tensorrt-version 11.1.0.106
  arcface-builder engines prune --keep 2 --older-than-days 90 --dry-run

Credentials, region and endpoint of the bucket come from where boto3 looks for them: AWS_* variables,
~/.aws, the machine's role.
"""

_DAMAGED: Final = "damaged"
_MISSING: Final = "missing"
_FOREIGN: Final = "left alone"

_AnyPlace: TypeAlias = "LocalStore | S3Store"


def add_engines(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    engines = commands.add_parser(
        "engines",
        help="list, pull, push, verify and prune stored TensorRT plans",
        description="Stored TensorRT plans: those in the local cache, and those in a bucket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = engines.add_subparsers(required=True, metavar="VERB")
    _add(verbs, "list", _list, "say which plans there are, and where")
    _add(verbs, "pull", _pull, "download plans from the bucket into the cache")
    push = _add(verbs, "push", _push, "upload the cache's plans to the bucket")
    push.add_argument("--overwrite", action="store_true", help="replace plans that the bucket has")
    verify = _add(verbs, "verify", _verify, "compare every plan's bytes with its manifest")
    prune = _add(verbs, "prune", _prune, "remove plans for which all conditions hold")
    for verb in (verify, prune):
        verb.add_argument("--remote", action="store_true", help="the bucket's plans instead of the cache's")
    prune.add_argument("--keep", type=int, metavar="N", help="not among the N newest that can take its place")
    prune.add_argument("--older-than-days", type=float, metavar="DAYS", help="built so long ago")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _add(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    add_storing(verb)
    verb.add_argument("--model", metavar="NAME", help="only plans of this model, e.g. arcface_r100")
    verb.add_argument("--precision", choices=PRECISIONS, help="only plans of this precision")
    verb.add_argument("--sm", type=architecture, help="only plans for this architecture, e.g. 86 (or 8.6)")
    verb.add_argument("--tensorrt-version", metavar="VERSION", help="only plans by this TensorRT")
    verb.add_argument("--json", action="store_true", help="print a JSON array")
    verb.set_defaults(run=run, usage_error=verb.error)
    return verb


def _list(arguments: argparse.Namespace) -> int:
    store = _open(arguments)
    filters = _filters(arguments)
    found = [
        (manifest, ["cache" if place is store.local else "bucket" for place in places])
        for manifest, places in store.where()
        if _fits(manifest.identity.key, filters)
    ]
    if arguments.json:
        records = [asdict(manifest) | {"places": there} for manifest, there in found]
        print(json.dumps(records, indent=2))
        return DONE
    if not found:
        places = [store.local, store.remote] if store.remote else [store.local]
        _say_nothing(*places, such=bool(filters))
    for manifest, there in sorted(found, key=lambda entry: entry[0].identity.key):
        key, size_mb = manifest.identity.key, manifest.plan_bytes / 1e6
        model = manifest.identity.settings.get(GPU_MODEL)
        fits = f"{manifest.identity.platform}, {model}" if model else manifest.identity.platform
        print(f"{key}  {fits}  {size_mb:,.1f} MB  {manifest.created_at:%Y-%m-%d}  {' and '.join(there)}")
    return DONE


def _pull(arguments: argparse.Namespace) -> int:
    store = _open(arguments)
    bucket = _bucket(store)
    damaged = [there for there in store.local.manifests() if isinstance(there, DamagedManifest)]
    foreign = {there.key: there.problem for there in damaged if there.is_foreign}

    def pull(manifest: PlanManifest) -> str:
        if problem := foreign.get(manifest.identity.key):
            raise PlanSchemaError(problem)
        if store.local.find(manifest.identity):
            return "already there"
        return "pulled" if store.pull(manifest.identity) else _MISSING

    return _each(bucket, pull, arguments)


def _push(arguments: argparse.Namespace) -> int:
    store = _open(arguments)
    _bucket(store)

    def push(manifest: PlanManifest) -> str:
        return "pushed" if store.push(manifest, overwrite=arguments.overwrite) else "already there"

    return _each(store.local, push, arguments)


def _verify(arguments: argparse.Namespace) -> int:
    place = _place(arguments)

    def verify(manifest: PlanManifest) -> str:
        try:
            place.check(manifest)
        except PlanGoneError:
            return "removed or replaced meanwhile"
        return "whole"

    return _each(place, verify, arguments)


def _prune(arguments: argparse.Namespace) -> int:
    try:
        rule = PruneRule(
            keep=arguments.keep,
            older_than_days=arguments.older_than_days,
            tensorrt_version=arguments.tensorrt_version,
        )
    except OptionError as error:
        arguments.usage_error(str(error))
    place = _place(arguments)
    filters = _filters(arguments)
    # The newest are counted over all versions of TensorRT.
    counted = {name: value for name, value in filters.items() if name != "tensorrt_version"}
    candidates = [manifest for manifest in readable(place) if _fits(manifest.identity.key, counted)]
    chosen = rule.choose(candidates, datetime.now(timezone.utc))

    def removed() -> Iterator[Outcome]:
        for manifest in chosen:
            if arguments.dry_run:
                result = "would be removed"
            else:
                result = "removed" if place.remove(manifest) else "replaced meanwhile, and left"
            yield Outcome(manifest.identity.key, result)

    if not tell(removed(), as_json=arguments.json):
        _say_nothing(place, such=bool(filters or candidates))
    return DONE


def _open(arguments: argparse.Namespace, *, with_bucket: bool = True) -> PlanStore:
    settings = load_tensorrt_settings(arguments.config, arguments={BUCKET_KEY: arguments.bucket})
    if not with_bucket:
        settings = settings.model_copy(update={"engine_s3_bucket": None})
    return store_from(arguments, settings)


def _place(arguments: argparse.Namespace) -> _AnyPlace:
    store = _open(arguments, with_bucket=arguments.remote)
    return _bucket(store) if arguments.remote else store.local


def _bucket(store: PlanStore) -> S3Store:
    if store.remote is None:
        raise OptionError(f"There is no bucket; name one with --bucket or {BUCKET_KEY} of the settings.")
    return store.remote


def _filters(arguments: argparse.Namespace) -> dict[str, str]:
    """What wanted plans have, by the names of ``KEY_PARTS``."""
    given = {name: getattr(arguments, name) for name in KEY_PARTS}
    return {name: value for name, value in given.items() if value is not None}


def _fits(key: str, filters: Mapping[str, str]) -> bool:
    return filters.items() <= key_parts(key).items()


def _each(place: _AnyPlace, action: Callable[[PlanManifest], str], arguments: argparse.Namespace) -> int:
    """Do something with every wanted engine of a place; one that is damaged does not stop the others."""
    filters = _filters(arguments)

    def outcomes() -> Iterator[Outcome]:
        for manifest in place.manifests():
            if isinstance(manifest, DamagedManifest):
                if _fits(manifest.key, filters):
                    result = _FOREIGN if manifest.is_foreign else _DAMAGED
                    yield Outcome(manifest.key, result, manifest.problem)
                continue
            key = manifest.identity.key
            if not _fits(key, filters):
                continue
            try:
                yield Outcome(key, action(manifest))
            except PlanGoneError as error:
                yield Outcome(key, _MISSING, str(error))
            except PlanSchemaError as error:
                yield Outcome(key, _FOREIGN, str(error))
            except PlanError as error:
                yield Outcome(key, _DAMAGED, str(error))

    told = tell(outcomes(), as_json=arguments.json)
    if not told:
        _say_nothing(place, such=bool(filters))
    failed = any(outcome.result in (_DAMAGED, _MISSING) for outcome in told) or (filters and not told)
    return FAILED if failed else DONE


def _say_nothing(*places: _AnyPlace, such: bool) -> None:
    """Say that places have no plan, or none such as was asked for."""
    names = [
        f"the {place.name} ({place.root})" if isinstance(place, LocalStore) else f"the {place.name}"
        for place in places
    ]
    print(f"There is no {'such ' if such else ''}plan in {' or '.join(names)}.", file=sys.stderr)
