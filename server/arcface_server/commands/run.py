"""``arcface-server run``."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress

from arcface_client.cli.commandline import DONE

from ..errors import FlagError
from ..launch import LOCALHOST
from ..local import LocalTriton


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "run",
        help="run tritonserver in the foreground",
        description="Run tritonserver in the foreground until Ctrl-C or SIGTERM. Once it is ready, one line "
        "with its addresses goes to standard output; its log goes to standard error.",
        epilog="example: arcface-server run --model-repository model_repository --grpc-port 8001 "
        "-- --log-verbose=1",
    )
    command.add_argument(
        "--model-repository", required=True, metavar="DIR", help="folder of models, or a URL"
    )
    command.add_argument(
        "--host",
        default=LOCALHOST,
        help="address to listen on (default: %(default)s; every one: 0.0.0.0, or ::)",
    )
    for name in ("HTTP", "gRPC", "metrics"):
        command.add_argument(
            f"--{name.lower()}-port", type=int, metavar="N", help=f"port for {name} (default: a free one)"
        )
    command.add_argument("--json", action="store_true", help="print the addresses as JSON")
    command.add_argument("flags", nargs="*", metavar="-- FLAG", help="further flags for tritonserver")
    command.set_defaults(run=lambda arguments: _run(arguments, command))


def _run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        server = LocalTriton(
            arguments.model_repository,
            host=arguments.host.strip("[]"),  # as IPv6 is written before a port
            http_port=arguments.http_port,
            grpc_port=arguments.grpc_port,
            metrics_port=arguments.metrics_port,
            flags=arguments.flags,
            log_to_stderr=True,
        )
    except FlagError as error:
        parser.error(str(error))
    # The usual way to end a server is Ctrl-C, SIGTERM, or closing the terminal; a start has no such end.
    with server, suppress(KeyboardInterrupt):
        print(_describe(server, arguments.json), flush=True)
        server.wait()
    return DONE


def _describe(server: LocalTriton, as_json: bool) -> str:
    if as_json:
        urls = {"grpc_url": server.grpc_url, "http_url": server.http_url, "metrics_url": server.metrics_url}
        return json.dumps({**urls, "pid": server.pid})
    return f"Triton is ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}"
