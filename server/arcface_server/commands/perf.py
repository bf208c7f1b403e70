"""``arcface-server perf``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from arcface_client.cli.commandline import DONE
from arcface_client.cli.output import check_output, replace_text

from ..perf import table
from ..perf.binary import find_perf_analyzer
from ..perf.input_data import load_crops, write_input_data
from ..perf.levels import parse_levels
from ..perf.measurement import Load, Measurement, measure


def add_perf(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "perf",
        help="measure a server with perf_analyzer",
        description="Measure a model over gRPC with NVIDIA's perf_analyzer: the one on the PATH, else one "
        "that is downloaded once. Numbers are lists: 1,8,32 is these three, 1:16 is 1 doubled until 16, "
        "2:8:3 is 2, 5 and 8.",
        epilog="example: arcface-server perf --model arcface_r100_onnx --batch-size 1,8 --output perf.json",
    )
    command.add_argument("--model", required=True, metavar="NAME", help="model to measure")
    command.add_argument("--version", type=int, metavar="N", help="its version (default: the newest)")
    command.add_argument(
        "--url", default="127.0.0.1:8001", metavar="HOST:PORT", help="gRPC address (default: %(default)s)"
    )
    command.add_argument(
        "--concurrency", type=parse_levels, default="1:16", metavar="N", help="requests under way at a time"
    )
    command.add_argument(
        "--batch-size", type=parse_levels, default="1,8,32", metavar="N", help="crops in a request"
    )
    command.add_argument(
        "--shared-memory",
        choices=("none", "system"),
        default="none",
        help="hand crops to a server on this machine beside the request (default: %(default)s)",
    )
    command.add_argument("--images", type=Path, metavar="DIR", help="face crops to send (default: colours)")
    command.add_argument(
        "--requests", type=int, default=50, metavar="N", help="requests in a window (default: %(default)s)"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")
    command.add_argument(
        "--json", action="store_true", help="print a JSON object; the table goes to standard error"
    )
    command.set_defaults(run=_perf)


def _perf(arguments: argparse.Namespace) -> int:
    from arcface_client import EmbeddingClient  # brings gRPC, for which `--help` need not wait

    if arguments.output is not None:
        check_output(arguments.output)
    with EmbeddingClient(arguments.url, arguments.model, arguments.version) as client:
        client.ensure_ready()
    people = sys.stderr if arguments.json else sys.stdout
    figures: list[Measurement] = []
    for figure in _measurements(arguments):
        if not figures:
            print(table.HEADER, file=people)
        print(table.row(figure), file=people, flush=True)
        figures.append(figure)
        if arguments.output is not None:
            # Each time: what has been measured stays when a later figure fails.
            replace_text(arguments.output, _report(arguments, figures) + "\n")
    if not all(figure.settled for figure in figures):
        print(table.NOT_SETTLED_NOTE, file=people)
    if arguments.json:
        print(_report(arguments, figures))
    return DONE


def _report(arguments: argparse.Namespace, figures: Sequence[Measurement]) -> str:
    report = {
        "model": arguments.model,
        "version": arguments.version,
        "url": arguments.url,
        "shared_memory": arguments.shared_memory,
        "measurements": [dataclasses.asdict(figure) for figure in figures],
    }
    return json.dumps(report, indent=2)


def _measurements(arguments: argparse.Namespace) -> Iterator[Measurement]:
    perf_analyzer = find_perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="arcface-perf-") as scratch:
        load = Load(
            url=arguments.url,
            model=arguments.model,
            version=arguments.version,
            input_data=Path(scratch, "crops.json"),
            shared_memory=arguments.shared_memory,
            requests=arguments.requests,
        )
        write_input_data(load_crops(arguments.images), load.input_data)
        for batch_size in arguments.batch_size:
            for concurrency in arguments.concurrency:
                yield measure(perf_analyzer, load, batch_size, concurrency)
