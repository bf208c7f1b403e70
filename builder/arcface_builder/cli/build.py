"""``arcface-builder build``: a source model into the next version of a served one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from typing import Final

from arcface_client.cli.commandline import DONE, utf8_path

from ..build import DEFAULT_REPOSITORY, build
from ..repository.config import ServingOptions
from .sources import add_sources, source_from

_DESCRIPTION: Final = """\
Build the next version of the model NAME_onnx in a Triton model repository.
It is published only if its embeddings equal the source model's to 1e-5.
"""

_SERVING: Final = """\
Written to config.pbtxt, which all versions of the model share. A model that is there keeps
its own unless one of these is given; then they all apply.
"""

_EPILOG: Final = """\
examples:
  arcface-builder build --name arcface_r100 --onnx-path glintr100.onnx
  arcface-builder build --name arcface_r50 --insightface-pack buffalo_l --accept-license
  arcface-builder build --name mine --checkpoint backbone.safetensors --device gpu --instances 2
  arcface-builder build --name demo --synthetic r50 --seed 7
"""


def add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    building = commands.add_parser(
        "build",
        help="build the next version of a served model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    building.add_argument("--name", required=True, help="name of the model, e.g. arcface_r100")
    building.add_argument(
        "--repository", type=utf8_path, default=DEFAULT_REPOSITORY, metavar="DIR", help="default: %(default)s"
    )
    building.add_argument("--json", action="store_true", help="print the manifest as a JSON object")
    add_sources(building)
    _add_serving_options(building)
    building.set_defaults(run=_build)


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    defaults = ServingOptions()
    group = parser.add_argument_group("serving", _SERVING)
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


def _build(arguments: argparse.Namespace) -> int:
    names = [field.name for field in fields(ServingOptions)]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    options = ServingOptions(**given) if given else None
    built = build(
        source_from(arguments), name=arguments.name, repository=arguments.repository, options=options
    )
    if arguments.json:
        print(json.dumps({"path": str(built.path), **asdict(built.manifest)}, indent=2))
        return DONE
    drift = built.manifest.parity.max_abs_difference
    of = "its source"
    if built.manifest.compared_with != "source file":
        of = f"its source's {built.manifest.compared_with}: the source file itself was not run"
    print(f"{built.model} version {built.version} in {built.path}, within {drift:.1e} of {of}")
    return DONE
