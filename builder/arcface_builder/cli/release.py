"""``arcface-builder release``: which version of a family of models serves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from arcface_client.cli.terminal import (
    examples,
    print_json,
    print_table,
    progress,
    say,
    with_shared_options,
)
from arcface_client.settings import load_pipeline_settings

from ..build import DEFAULT_REPOSITORY
from ..release import Releases
from ..repository.publish import ModelRepository
from .options import Json, Name, Repository
from .sibling import crops_from

release = typer.Typer(
    no_args_is_help=True,
    help="Decide which version clients use: promote one on running servers, and go back.",
    epilog=examples(
        "arcface-builder release list --name arcface_r100",
        "arcface-builder release promote 3 --name arcface_r100 --canary 0.05",
        "arcface-builder release promote 3 --name arcface_r100",
        "arcface-builder release rollback --name arcface_r100",
        "arcface-builder release prune --name arcface_r100 --keep 2 --dry-run",
    ),
)

Version = Annotated[int, typer.Argument(min=1, metavar="N", help="The version.")]
_SHORT: Final = 12


@dataclass(frozen=True)
class _Where:
    """What every verb is told: which models, and which servers serve them."""

    name: Name
    repository: Repository = DEFAULT_REPOSITORY
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="gRPC address of every server of the repository, with commas between them; default: "
            "triton.url. An empty one changes the repository alone.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings; default: config/pipeline/embedding.yaml."),
    ] = None
    json: Json = False

    def open(self, *, offline: bool = False) -> tuple[Releases, float]:
        """The releases, and the largest drift that the settings allow."""
        settings = load_pipeline_settings(self.config, arguments={"triton.url": self.url or None})
        urls = () if offline or self.url == "" else settings.triton.required_urls()
        models = ModelRepository(self.repository)
        return (
            Releases(models, self.name, urls, settings.triton.limits),
            settings.embedding.max_drift_cosine,
        )


@release.command("list")
@with_shared_options
def list_(where: _Where) -> None:
    """Show every version: what serves, since when, from which source, with which drift."""
    listed = where.open(offline=True)[0].listed()
    if where.json:
        print_json([asdict(one) for one in listed])
        return
    rows: list[tuple[Any, ...]] = [
        (
            one.version,
            one.state,
            one.since,
            one.source_sha256[:_SHORT],
            f"{max(one.drift.values()):.1g}" if one.drift else None,
            " ".join(one.models),
        )
        for one in listed
    ]
    print_table(("version", "state", "since", "source", "drift", "models"), rows)


@release.command()
@with_shared_options
def promote(
    where: _Where,
    version: Version,
    canary: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Give it this share of each client's calls only, for now."
        ),
    ] = 0.0,
    calibration_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Real face crops, for the accuracy check.")
    ] = None,
) -> None:
    """Load version N beside the release, check what is served of it, and let calls go to it.

    If it does not load or drifts, the old release goes on. Clients notice within two seconds. A canary of
    another embedding space is loaded and checked, and gets no calls; `retire` unloads it.
    """
    releases, max_drift = where.open()
    with progress(f"release promote {version}") as report:
        done = releases.promote(
            version,
            max_drift_cosine=max_drift,
            share=canary,
            crops=crops_from(calibration_dir, report),
            report=report,
        )
    if where.json:
        print_json(asdict(done) | {"canary": releases.state.release.share or None})
        return
    share = releases.state.release.share
    gets = "is the release" if not canary else f"gets {share:.0%} of the calls" if share else "gets no calls"
    print(f"Version {version} of {where.name} {gets}")
    for model, drift in done.drift.items():
        say(f"{model}: largest drift {drift:.2g}")


@release.command()
@with_shared_options
def rollback(where: _Where) -> None:
    """End a canary, or else let calls go to the release before; nothing is rebuilt."""
    with progress("release rollback") as report:
        version = where.open()[0].rollback(report)
    if where.json:
        print_json({"version": version})
    else:
        print(f"Version {version} of {where.name} is the release")


@release.command()
@with_shared_options
def retire(where: _Where, version: Version) -> None:
    """Let the servers unload version N, which is not the release; it stays on disk."""
    with progress(f"release retire {version}") as report:
        where.open()[0].retire(version, report)
    if where.json:
        print_json({"version": version})
    else:
        print(f"Version {version} of {where.name} is not loaded any more")


@release.command()
@with_shared_options
def prune(
    where: _Where,
    keep: Annotated[int, typer.Option(min=1, metavar="K", help="Keep the K newest versions.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old versions from the disk; those that servers load are kept."""
    removed = where.open(offline=True)[0].prune(keep, dry_run=dry_run)
    if where.json:
        print_json({"removed": removed, "dry_run": dry_run})
        return
    for version in removed:
        print(f"{'would be removed' if dry_run else 'removed'}: version {version} of {where.name}")
    if not removed:
        say("No version can be removed: the servers load them, or they are among the newest.")
