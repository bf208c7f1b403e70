"""The command line: ``arcface-builder inspect``, ``build``, ``compile`` and ``engines``."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from arcface_client import commandline

from .build import DEFAULT_REPOSITORY, build
from .commands.compile import add_compile
from .commands.engines import add_engines
from .commands.sources import add_sources, source_from
from .inspection import inspect
from .model_config import ServingOptions

_DESCRIPTION = """\
Build a Triton model repository from an ArcFace model, and prove that it gives the same embeddings.
"""

_EXAMPLES = """\
examples:
  arcface-builder inspect w600k_r50.onnx
      what the file is, what its callers must do, what a build would mend
  arcface-builder build --name arcface_r50 --onnx-path w600k_r50.onnx
      the next version of model_repository/arcface_r50_onnx
  arcface-builder build --name demo --synthetic r18
      random weights, to try everything without a download; it recognises nobody

exit codes: 0 done, 1 failed (one line says why, nothing was published), 2 wrong usage
"""

_BUILD_EXAMPLES = """\
examples:
  arcface-builder build --name arcface_r100 --onnx-path glintr100.onnx
  arcface-builder build --name arcface_r50 --insightface-pack buffalo_l --accept-license
  arcface-builder build --name mine --checkpoint backbone.safetensors --device gpu --instances 2
  arcface-builder build --name demo --synthetic r50 --seed 7
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for talkative in ("onnx_ir", "botocore"):  # they tell all that they remove, and where credentials are
        logging.getLogger(talkative).setLevel(logging.WARNING)
    return commandline.run("arcface-builder", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "arcface-builder", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commandline.add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    inspecting = commands.add_parser(
        "inspect",
        help="say what an ONNX file is and what a build would mend",
        description="Say what an ONNX file is, what its callers must do, and what a build would mend. "
        "What the graph does to the pixels is found by running it, not by its names.",
    )
    inspecting.add_argument("file", type=Path, metavar="FILE", help="an ONNX file; it is not changed")
    inspecting.add_argument("--json", action="store_true", help="print a JSON object")
    inspecting.set_defaults(run=_inspect)

    building = commands.add_parser(
        "build",
        help="build the next version of a served model",
        description="Build the next version of the model NAME_onnx in a Triton model repository. "
        "It is published only if its embeddings equal the source model's to 1e-5.",
        epilog=_BUILD_EXAMPLES,
        formatter_class=raw,
    )
    building.add_argument("--name", required=True, help="name of the model, e.g. arcface_r100")
    building.add_argument(
        "--repository", type=Path, default=DEFAULT_REPOSITORY, metavar="DIR", help="default: %(default)s"
    )
    building.add_argument("--json", action="store_true", help="print the manifest as a JSON object")
    add_sources(building)
    _add_serving_options(building)
    building.set_defaults(run=_build)
    add_compile(commands)
    add_engines(commands)
    return parser


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    defaults = ServingOptions()
    group = parser.add_argument_group(
        "serving",
        "Written to config.pbtxt, which all versions of the model share. A model that is there keeps its "
        "own unless one of these is given; then they all apply.",
    )
    group.add_argument("--device", choices=("cpu", "gpu"), help=f"default: {defaults.device}")
    group.add_argument(
        "--instances",
        type=int,
        help=f"copies side by side, on each GPU; default: {defaults.instances}",
    )
    group.add_argument("--max-batch-size", type=int, help=f"default: {defaults.max_batch_size}")
    group.add_argument(
        "--max-queue-delay-us",
        type=int,
        help="how long a request may wait for a batch to fill, in microseconds; "
        f"default: {defaults.max_queue_delay_us}",
    )
    group.add_argument(
        "--intra-op-threads",
        type=int,
        help="threads of an instance; 0, the default, is one per physical core",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    inspection = inspect(arguments.file)
    print(json.dumps(inspection.to_dict(), indent=2) if arguments.json else inspection.to_text())
    return commandline.DONE


def _build(arguments: argparse.Namespace) -> int:
    names = [field.name for field in fields(ServingOptions)]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    options = ServingOptions(**given) if given else None
    built = build(
        source_from(arguments), name=arguments.name, repository=arguments.repository, options=options
    )
    if arguments.json:
        print(json.dumps({"path": str(built.path), **asdict(built.manifest)}, indent=2))
        return commandline.DONE
    drift = built.manifest.parity.max_abs_difference
    of = "its source"
    if built.manifest.compared_with != "source file":
        of = f"its source's {built.manifest.compared_with}: the source file itself was not run"
    print(f"{built.model} version {built.version} in {built.path}, within {drift:.1e} of {of}")
    return commandline.DONE
