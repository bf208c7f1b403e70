"""``arcface-client status``: the servers' models, why one is not ready, and the settings' embedder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArcFaceError, DeploymentError
from ..models.golden import golden_crops
from ..triton.server_state import ServerStatus
from .commandline import DONE, FAILED
from .connecting import add_connection_flags, settings_from

if TYPE_CHECKING:
    from ..settings import PipelineSettings, TritonSettings

_TIMED_CALLS: Final = 5

_DESCRIPTION: Final = """\
Show the servers, their models and versions, and why one is not ready. With --json also the embedder that the
settings make: who embeds, how fast, how exactly, and why not another; a few crops are embedded to know.
"""

_EPILOG: Final = """\
example: arcface-client status --url localhost:8001 --backend triton --json

exit codes:
  0 a server has a model ready, even if others do not answer (with --json: somebody can embed)
  1 none has (with --json: nobody can embed)
  2 wrong usage
"""


def add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    status = commands.add_parser(
        "status",
        help="show the servers' models, and why one is not ready",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status.add_argument("--json", action="store_true", help="report as JSON")
    status.add_argument(
        "--backend",
        metavar="TYPE",
        help="with --json, the embedder to report: pytorch, tensorrt, onnxruntime or triton (default: "
        "embedding.backend)",
    )
    status.add_argument(
        "--device", help="with --json, its device: cpu, cuda, cuda:N or auto (default: embedding.device)"
    )
    add_connection_flags(status)
    status.set_defaults(run=partial(_status, status))


def _status(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if not arguments.json and (arguments.backend or arguments.device):
        parser.error("--backend and --device say which embedder --json reports; give --json as well")
    flags = {"embedding.backend": arguments.backend, "embedding.device": arguments.device}
    settings = settings_from(arguments, **flags)
    triton = settings.triton
    servers = [_ask(triton, url) for url in (triton.url if arguments.json else triton.required_urls())]
    if arguments.json:
        embedder = _embedder(settings)
        report = {"servers": [dataclasses.asdict(server) for server in servers], "embedder": embedder}
        print(json.dumps(report, indent=2))
        return DONE if embedder["problem"] is None else FAILED
    for server in servers:
        _show(server)
    return DONE if any(model.ready for server in servers for model in server.models) else FAILED


def _ask(triton: TritonSettings, url: str) -> ServerStatus:
    with triton.client(url) as client:
        try:
            return client.status()
        except ArcFaceError as error:
            return ServerStatus(url, None, ready=False, problem=str(error))


def _show(server: ServerStatus) -> None:
    if server.problem:
        print(f"arcface-client: {server.problem}", file=sys.stderr)
        return
    print(f"Triton {server.version} at {server.url}: {'ready' if server.ready else 'not ready'}")
    for model in server.models:
        version = "-" if model.version is None else str(model.version)
        state = model.state or "NOT LOADED"
        print(f"  {model.name:<28} {version:>3}  {state:<12} {model.reason}".rstrip())


def _embedder(settings: PipelineSettings) -> dict[str, Any]:
    """What the embedder says of itself after a few real calls, and what kept it from them."""
    from ..backends.factory import make_backend

    problem = None
    try:
        backend = make_backend(settings)
    except DeploymentError as error:  # settings that leave nobody to embed
        return {"problem": str(error)}
    with backend as embedder:
        try:
            embedder.ensure_ready()
            for _ in range(_TIMED_CALLS):
                embedder.encode(golden_crops())
        except ArcFaceError as error:
            problem = str(error)
        return embedder.diagnostics().to_dict() | {"problem": problem}
