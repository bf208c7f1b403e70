"""``arcface-client status``: a server's models, and why one is not ready."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..commandline import DONE
from .connecting import add_connection_flags, settings_from


def add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    status = commands.add_parser(
        "status",
        help="show a server's models, and why one is not ready",
        description="Show the server, its models and versions, and why one is not ready. "
        "The exit code is 1 when no server answers.",
        epilog="example: arcface-client status --url localhost:8001 --json",
    )
    status.add_argument("--json", action="store_true", help="report as JSON")
    add_connection_flags(status)
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    with settings_from(arguments).triton.client() as client:
        server = client.status()
    if arguments.json:
        print(json.dumps(dataclasses.asdict(server), indent=2))
        return DONE
    print(f"Triton {server.version} at {server.url}: {'ready' if server.ready else 'not ready'}")
    for model in server.models:
        version = "-" if model.version is None else str(model.version)
        state = model.state or "NOT LOADED"
        print(f"  {model.name:<28} {version:>3}  {state:<12} {model.reason}".rstrip())
    return DONE
