"""``arcface-builder``: inspect, build, compile, the stored plans (engines), releases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from arcface_client.cli import terminal

from ..source import inspect as inspection
from .build import build
from .compile import compile_
from .engines import engines
from .options import Json
from .release import release
from .remote import publish, pull

app = terminal.new_app(
    "Build a Triton model repository from an ArcFace model, and prove that it gives the same embeddings.",
    epilog=terminal.examples(
        "arcface-builder inspect w600k_r50.onnx",
        "arcface-builder build --name arcface_r50 --onnx-path w600k_r50.onnx",
        "arcface-builder build --name demo --synthetic r18",
        "arcface-builder compile --name arcface_r50",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for talkative in ("onnx_ir", "botocore"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it adds a traceback to what is reported
    return terminal.run(app, "arcface-builder", argv)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file; it is not changed.")],
    json: Json = False,
) -> None:
    """Say what an ONNX file is, what its callers must do, and what a build would fix.

    What the graph does to the pixels is found by running it, not by its names. The exit code is 1 if a build
    refuses the file.
    """
    found = inspection.inspect(file)
    if json:
        terminal.print_json(found.to_dict())
    else:
        print(found.to_text())
    if found.refused:
        raise typer.Exit(1)


app.command(
    epilog=terminal.examples(
        "arcface-builder build --name arcface_r100 --onnx-path glintr100.onnx",
        "arcface-builder build --name arcface_r50 --insightface-pack buffalo_l --accept-license",
        "arcface-builder build --name mine --checkpoint backbone.safetensors --device gpu --instances 2",
        "arcface-builder build --name adaface --onnx-path adaface_ir101.onnx --family adaface",
        "arcface-builder build --name demo --synthetic r50 --seed 7",
    )
)(build)
app.command(
    "compile",
    short_help="Add a faster model to a built one: a TensorRT plan, cuDNN or OpenVINO.",
    epilog=terminal.examples(
        "arcface-builder compile --name arcface_r100",
        "arcface-builder compile --name arcface_r100 --precision int8 --calibration-dir crops/ "
        "--fallback-precision",
        "arcface-builder compile --name arcface_r100 --cc 8.0,8.6,9.0 --from-store",
    ),
)(compile_)
app.command(
    epilog=terminal.examples("arcface-builder publish s3://models/faces --name arcface_r100"),
)(publish)
app.command(epilog=terminal.examples("arcface-builder pull s3://models/faces --name arcface_r100"))(pull)
app.add_typer(engines, name="engines")
app.add_typer(release, name="release")
