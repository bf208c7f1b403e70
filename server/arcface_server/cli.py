"""``arcface-server``: run a Triton server on this machine, and measure one."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from arcface_client.cli.output import check_output, replace_text
from arcface_client.cli.terminal import DONE, examples, new_app, run, whole_numbers
from arcface_client.models.files import replacing

from .errors import FlagError
from .launch import LOCALHOST, restriction_flags
from .local import LocalTriton
from .perf.binary import find_perf_analyzer
from .perf.measurement import (
    CROP_COUNT,
    HEADER,
    NOT_SETTLED_NOTE,
    Load,
    Measurement,
    Protocol,
    SharedMemory,
    largest_batch,
    measure,
    write_input_data,
)

_USUAL_HTTP: Final = "127.0.0.1:8000"

app = new_app(
    "Run the real Triton Inference Server without its container, and measure a server.",
    epilog=examples(
        "arcface-server run --repository model_repository --grpc-port 8001 -- --log-verbose=1",
        "arcface-server perf --model arcface_r100_onnx --batch-size 1,8 --output perf.json",
        interrupted=" (before the server was ready)",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return run(app, "arcface-server", argv)


Port: TypeAlias = Annotated[int | None, typer.Option(metavar="N", help="Port (default: any free one).")]


@app.command("run")
def run_server(
    repository: Annotated[
        str,
        typer.Option(
            "--repository",
            "--model-repository",
            metavar="DIR",
            help="Folder of models, or a URL; --model-repository, as tritonserver calls it, means the same.",
        ),
    ],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAG", help="Further flags for tritonserver.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 or :: is every address.")
    ] = LOCALHOST,
    http_port: Port = None,
    grpc_port: Port = None,
    metrics_port: Port = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Let only requests with the key in this file use shared memory, trace and logging settings, "
            "and explicit model control.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON.")] = False,
) -> int:
    """Run tritonserver in the foreground until Ctrl-C or SIGTERM, then end with 0.

    When it is ready, one line with its addresses goes to standard output. Its log goes to standard error.
    """
    given = flags or []
    try:
        restrictions = restriction_flags(admin_key_file, given) if admin_key_file else []
        server = LocalTriton(
            repository,
            host=host.strip("[]"),  # the form of IPv6 before a port
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            flags=[*given, *restrictions],
            log_to_stderr=True,
        )
    except FlagError as error:
        raise typer.BadParameter(str(error)) from error
    # Ctrl-C and SIGTERM are the usual end of a server, but not of its start.
    with server, suppress(KeyboardInterrupt):
        urls = {"grpc_url": server.grpc_url, "http_url": server.http_url, "metrics_url": server.metrics_url}
        line = "Triton is ready: gRPC {grpc_url}, HTTP {http_url}, metrics {metrics_url}".format_map(urls)
        print(json.dumps({**urls, "pid": server.pid}) if as_json else line, flush=True)
        server.wait()
    return DONE


@app.command()
def perf(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="NAME", help="Model to measure.")],
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Its version (default: the newest).")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="How requests are sent.")] = "grpc",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help=f"The server's address for this protocol (default: triton.url, or {_USUAL_HTTP} for http).",
        ),
    ] = None,
    concurrency: Annotated[
        Any,
        typer.Option(
            parser=whole_numbers, metavar="N", help="Requests under way at a time, for example 1,8."
        ),
    ] = "1,2,4,8,16",
    request_rate: Annotated[
        Any,
        typer.Option(
            parser=whole_numbers,
            metavar="N",
            help="Instead of --concurrency: requests sent in a second, for example 20,40, at random moments.",
        ),
    ] = None,
    batch_size: Annotated[
        Any, typer.Option(parser=whole_numbers, metavar="N", help="Crops in a request, for example 1,8.")
    ] = "1,8,32",
    shared_memory: Annotated[
        SharedMemory,
        typer.Option(help="How crops reach the server: in the request, or in shared memory of this machine."),
    ] = "none",
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of face crops to send (default: generated)."),
    ] = None,
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests in a window.")] = 50,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the figures to this file, as JSON.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object; the table goes to standard error.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw throughput against latency: .svg, .png or .pdf."),
    ] = None,
) -> int:
    """Measure a model with NVIDIA's perf_analyzer: the one on the PATH, or one that is downloaded once."""
    from arcface_client.evaluation.benchmark import check_batch_size, machine  # slow; `--help` needs none
    from arcface_client.evaluation.plot import check_plot, draw
    from arcface_client.evaluation.report import versions
    from arcface_client.evaluation.samples import generated_samples, samples_from
    from arcface_client.settings import load_pipeline_settings

    for path in filter(None, (output, plot)):
        check_output(path)
    if plot is not None:
        check_plot(plot)
    if url is None:
        url = load_pipeline_settings().triton.required_urls()[0] if protocol == "grpc" else _USUAL_HTTP
    check_batch_size(model, max(batch_size), largest_batch(url, model, version, protocol))
    about: dict[str, Any] = {"model": model, "version": version, "protocol": protocol, "url": url}
    about |= {"shared_memory": shared_memory, "command": str(context.obj)}
    about |= {"machine": machine(), "versions": versions(None)}
    table = sys.stderr if as_json else sys.stdout
    figures: list[Measurement] = []
    perf_analyzer = find_perf_analyzer()
    with tempfile.TemporaryDirectory(prefix="arcface-perf-") as scratch:
        load = Load(url, model, version, Path(scratch, "crops.json"), shared_memory, requests, protocol)
        samples = samples_from(images, CROP_COUNT) if images else generated_samples(CROP_COUNT)
        write_input_data(samples.crops, load.input_data)
        levels = [(None, rate) for rate in request_rate] if request_rate else [(n, None) for n in concurrency]
        print(HEADER, file=table, flush=True)  # the first row takes a while
        for batch, level in ((batch, level) for batch in batch_size for level in levels):
            figure = measure(perf_analyzer, load, batch, *level)
            print(figure.row(), file=table, flush=True)
            figures.append(figure)
            if output is not None:  # each time, so that a later failure does not lose the figures before it
                replace_text(output, _report(about, figures) + "\n")
    if not all(figure.settled for figure in figures):
        print(NOT_SETTLED_NOTE, file=table)
    if plot is not None:
        lines = {
            f"batch {batch}": [
                (figure.p50_ms, figure.faces_per_s, figure.load)
                for figure in figures
                if figure.batch_size == batch
            ]
            for batch in batch_size
        }
        with replacing(plot) as file:
            draw(lines, "requests at a time").savefig(file, format=plot.suffix[1:].lower())
    if as_json:
        print(_report(about, figures))
    return DONE


def _report(about: dict[str, Any], figures: Sequence[Measurement]) -> str:
    return json.dumps({**about, "measurements": [dataclasses.asdict(figure) for figure in figures]}, indent=2)
