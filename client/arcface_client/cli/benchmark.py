"""``arcface-client benchmark``: how fast does each way to embed run on this machine?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import joined
from .connection import Json, Server
from .terminal import (
    DONE,
    FAILED,
    INTERRUPTED,
    checked,
    examples,
    print_json,
    print_table,
    progress,
    say,
    whole_numbers,
    with_shared_options,
)

if TYPE_CHECKING:
    from ..evaluation.benchmark import Benchmark, Figure, Spread

EPILOG: Final = examples(
    "arcface-client benchmark onnxruntime --name arcface_r50",
    "arcface-client benchmark triton --name arcface_r50 --against onnxruntime --against insightface",
    "arcface-client benchmark arcface_r50_trt:2 --against arcface_r50_trt:1 --plot speed.svg --json",
    exit_codes="0 measured, 1 failed or fell back",
    interrupted=" (figures are kept)",
)


@with_shared_options
def benchmark(
    server: Server,
    context: typer.Context,
    system: Annotated[
        str | None,
        typer.Argument(
            help="What to measure: a backend, for example onnxruntime or triton; a model of the server, NAME "
            "or NAME:VERSION; or an ONNX file that arcface-builder wrote (default: embedding.backend)."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM", help="Measure this system, too, in turns with the first; may be repeated."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name that the models share, for example arcface_r50 (default: embedding.model)."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What the backend insightface runs (default: embedding.source)."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of backends in this process: cpu, cuda, cuda:N or auto.")
    ] = None,
    batch_size: Annotated[
        Any,
        typer.Option(
            parser=whole_numbers,
            metavar="N",
            help="Crops in a call, for example 1,8,32 (default: 1, 2, 4 and so on, up to the largest batch).",
        ),
    ] = None,
    clients: Annotated[
        int,
        typer.Option(min=1, help="Threads that call at the same time, one call each."),
    ] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each system at each batch size.")] = 10,
    turn_s: Annotated[
        float, typer.Option("--turn-s", min=0, help="Seconds that a turn takes; at least one call is made.")
    ] = 0.5,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the figures to this file, as JSON.")
    ] = None,
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw throughput against latency: .svg, .png or .pdf."),
    ] = None,
) -> int:
    """Measure how fast face crops are embedded, batch size by batch size.

    Each system runs in a process of its own. With --against, the systems take turns, and each turn is
    compared with the first system's turn beside it, so that a slow moment of the machine affects both.
    """
    from ..evaluation import benchmark as measuring  # brings gRPC, for which `--help` need not wait
    from ..models.files import replacing
    from .output import check_output, replace_text

    for path in filter(None, (output, plot)):
        check_output(path)
    if plot is not None:
        from ..evaluation.plot import check_plot, draw

        checked(check_plot)(plot)
    flags = {"embedding.model": name, "embedding.source": source, "embedding.device": device}
    settings = server.settings(**flags)
    options = measuring.Options(
        systems=[system or settings.embedding.backend, *(against or [])],
        batch_sizes=batch_size or (),
        clients=clients,
        turns=turns,
        turn_s=turn_s,
        command=str(context.obj),
    )
    with progress("benchmark") as shown:
        result = measuring.benchmark(options, settings, shown)
    if output is not None:
        replace_text(output, json.dumps(result.to_dict(), indent=2) + "\n")
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    if plot is not None:
        with replacing(plot) as file:
            lines = {
                system.name: [(one.p50_ms, one.throughput_fps, str(one.batch_size)) for one in system.figures]
                for system in result.systems
            }
            draw(lines, "crops in a call").savefig(file, format=plot.suffix[1:].lower())
    return _conclude(result)


def _print(result: Benchmark) -> None:
    print_table(
        ("system", "served by", "start s", "host MiB", "GPU MiB", "drift"),
        [
            (
                system.name,
                "; ".join(system.served_by),
                f"{system.start_s:.2f}",
                f"{system.host_mb:,.0f}",
                None if system.vram_mb is None else f"{system.vram_mb:,.0f}",
                None if system.drift is None else f"{system.drift:.1e}",
            )
            for system in result.systems
        ],
    )
    print()
    several = len(result.systems) > 1
    columns = ["system", "batch", "faces/s", "", "p50 ms", "p95 ms", "p99 ms", "calls"]
    if several:
        columns += [f"against {result.systems[0].name}", ""]
    rows = sorted(
        ((system.name, figure) for system in result.systems for figure in system.figures),
        key=lambda row: row[1].batch_size,
    )
    print_table(columns, [_row(name, figure, several) for name, figure in rows])


def _row(name: str, figure: Figure, several: bool) -> list[str]:
    times = [f"{value:.2f}" for value in (figure.p50_ms, figure.p95_ms, figure.p99_ms)]
    row = [name, str(figure.batch_size), *_cells(figure.fps, ".1f"), *times, str(figure.calls)]
    if several:
        row += ["", ""] if figure.ratio is None else _cells(figure.ratio, ".3f", "x")
    return row


def _cells(spread: Spread, form: str, unit: str = "") -> list[str]:
    noisy = " *" if spread.noisy else ""
    return [f"{spread.median:{form}}{unit}{noisy}", f"({spread.low:{form}} to {spread.high:{form}})"]


def _conclude(result: Benchmark) -> int:
    """Say what is wrong with the figures, and give the exit code."""
    from ..evaluation.benchmark import INTERRUPTED as BY_THE_USER
    from ..evaluation.benchmark import NOISY

    if result.noisy:
        say(
            "* The machine was too noisy to tell: the middle half of the turns, in brackets, spreads by more "
            f"than {NOISY:.0%}, or there are too few turns. Measure on a quieter machine, or with a larger "
            "--turn-s or --turns."
        )
    for system in result.systems:
        if system.fell_back:
            served_by, why = "; ".join(system.served_by), joined(system.not_by)
            say(f"{system.name} fell back: {served_by} embedded, because of {why}", style="red")
    if result.stopped is not None:
        say(f"Not everything was measured: {result.stopped}", style="red")
    if result.stopped == BY_THE_USER:
        return INTERRUPTED
    return FAILED if result.stopped or result.fell_back else DONE
