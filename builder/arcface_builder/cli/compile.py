"""``arcface-builder compile``: a plan for the GPU at hand, or a fleet's plans from the store."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from arcface_client.cli.bars import progress, stages
from arcface_client.cli.commandline import DONE, utf8_path
from arcface_client.contract import Crops
from arcface_client.errors import InputError
from arcface_client.evaluation.images import find_images, read_crop
from arcface_client.models.embedding_space import PRECISIONS
from arcface_client.models.naming import onnx_model
from arcface_client.settings import TENSORRT_PATH, TensorRtSettings, load_tensorrt_settings

from ..build import DEFAULT_REPOSITORY
from ..compile import compile_plan
from ..errors import OptionError, RepositoryError
from ..fleet import assemble
from ..graph.precision import calibration_crops
from ..plan_request import PlanRequest
from ..repository.publish import ModelRepository
from ..repository.publish_plan import AddedPlan
from ..source.load import Source, located
from ..source.onnx_version import OnnxVersion, find_onnx
from ..trt.gpu import gpu_at_hand
from ..trt.settings import build_options
from ..trt.timing_cache import check_timing_cache
from .architectures import capabilities
from .rebuilding import rebuild_command
from .storing import BUCKET_KEY, add_storing, store_from

_MOST_CROPS: Final = 1024  # of a folder: more makes no better ranges

_SETTINGS_WITH_FLAG: Final = (
    "precision",
    "max_batch_size",
    "opt_batch_size",
    "workspace_size_mb",
    "instances",
)

_OF_A_BUILD: Final = ("calibration_dir", "timing_cache", "fallback_precision")
_OF_A_FLEET: Final = ("tensorrt_version", "platform")

_DESCRIPTION: Final = """\
Make a TensorRT plan of the model NAME_onnx for the GPU at hand and put it into the model NAME_trt.
It is stored only if its embeddings equal those of the source model or, if that cannot be read from
here, those of the ONNX model, which was compared with its source when it was built. If the store
has the plan already, that one is used.
"""

_EPILOG: Final = f"""\
examples:
  arcface-builder compile --name arcface_r100
      a plan of the newest arcface_r100_onnx for this machine's GPU
  arcface-builder compile --name arcface_r100 --precision int8 --calibration-dir crops/ --fallback-precision
  arcface-builder compile --name arcface_r100 --cc 8.0,8.6,9.0 --from-store
      a fleet's repository from stored plans, on a machine without a GPU

tensorrt.* are settings: flags take precedence over ARCFACE_TENSORRT_* variables, and those over
{TENSORRT_PATH}.
"""


def add_compile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compile",
        help="build, prove and store a TensorRT plan",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="name of the model, e.g. arcface_r100")
    parser.add_argument(
        "--repository", type=utf8_path, default=DEFAULT_REPOSITORY, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--version", type=int, metavar="N", help="of NAME_onnx; default: the newest")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: tensorrt.precision")
    parser.add_argument("--max-batch-size", type=int, metavar="N", help="default: tensorrt.max_batch_size")
    parser.add_argument(
        "--opt-batch-size", type=int, metavar="N", help="default: tensorrt.opt_batch_size, or the largest"
    )
    parser.add_argument(
        "--workspace-size-mb", type=int, metavar="MB", help="default: tensorrt.workspace_size_mb"
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="read and write kernel timings: later builds, of similar models too, take a fraction as long",
    )
    parser.add_argument(
        "--calibration-dir", type=Path, metavar="DIR", help="real face crops: int8's ranges, and the proof"
    )
    parser.add_argument(
        "--fallback-precision",
        action="store_true",
        help="where a precision is refused, build the next more exact one instead",
    )
    parser.add_argument(
        "--instances",
        type=int,
        metavar="N",
        help="copies on each GPU; default: tensorrt.instances, or as it is, or 2",
    )
    add_storing(parser)
    fleet = parser.add_argument_group("a fleet's plans, without a GPU")
    fleet.add_argument("--cc", type=capabilities, metavar="CC,...", help="compute capabilities: 8.0,8.6")
    fleet.add_argument("--from-store", action="store_true", help="take stored plans, build none")
    fleet.add_argument(
        "--tensorrt-version",
        metavar="VERSION",
        help="default: the version's, or the newest that has all",
    )
    fleet.add_argument(
        "--platform",
        metavar="OS-CPU",
        help="as linux-aarch64; default: the version's, or this machine's",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=_run, usage_error=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if bool(arguments.cc) != arguments.from_store:
        arguments.usage_error("--cc and --from-store go together: plans are built on the GPU they are for")
    needless = _OF_A_BUILD if arguments.from_store else _OF_A_FLEET
    for name in needless:
        if getattr(arguments, name):
            other = "without" if arguments.from_store else "with"
            arguments.usage_error(f"--{name.replace('_', '-')} goes {other} --from-store")
    settings = _settings(arguments)
    if settings.enabled == "off":
        print("TensorRT is switched off (arcface_tensorrt.enabled); nothing was compiled", file=sys.stderr)
        return _report([], {}, as_json=arguments.json)
    try:
        options = build_options(settings, arguments.timing_cache)
    except OptionError as error:
        if any(getattr(arguments, name) is not None for name in error.options):  # given by a flag
            arguments.usage_error(str(error))
        raise
    repository = ModelRepository(arguments.repository)
    onnx = find_onnx(repository, arguments.name, arguments.version)
    if arguments.from_store:
        store = store_from(arguments, settings)
        added = assemble(
            onnx,
            options,
            arguments.cc,
            store,
            repository,
            tensorrt_version=arguments.tensorrt_version,
            platform=arguments.platform,
            instances=settings.instances,
            max_drift_cosine=settings.max_drift_cosine,
        )
        return _report(added, {}, as_json=arguments.json)
    if options.timing_cache is not None:
        try:
            check_timing_cache(options.timing_cache)
        except InputError as error:
            arguments.usage_error(f"--timing-cache: {error}")
    crops = _crops(arguments.calibration_dir)
    if options.precision == "int8":
        calibration_crops(crops)  # checked before the GPU is looked for
    request = PlanRequest(
        onnx=onnx,
        options=options,
        fallback=arguments.fallback_precision,
        max_drift_cosine=settings.max_drift_cosine,
        calibration=crops,
        source=_source(repository, onnx),
        command=partial(rebuild_command, arguments, onnx, settings),
    )
    gpu = gpu_at_hand()
    store = store_from(arguments, settings)
    with stages(onnx.name) as report:
        compiled = compile_plan(request, gpu, store, repository, instances=settings.instances, report=report)
    found = {
        "from_store": compiled.from_store,
        "refusals": compiled.refusals,
        "manifest": asdict(compiled.manifest),
    }
    return _report([compiled.added], found, as_json=arguments.json)


def _settings(arguments: argparse.Namespace) -> TensorRtSettings:
    flags = {f"tensorrt.{name}": getattr(arguments, name) for name in _SETTINGS_WITH_FLAG}
    flags[BUCKET_KEY] = arguments.bucket
    return load_tensorrt_settings(arguments.config, arguments=flags)


def _report(added: list[AddedPlan], more: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        plans = [{**asdict(plan), "path": str(plan.path)} for plan in added]
        print(json.dumps({"plans": plans, **more}, indent=2))
        return DONE
    for plan in added:
        state = "added to" if plan.is_new else "already in"
        kind = f"TensorRT {plan.tensorrt_version}, {plan.platform}"
        print(f"{plan.path.name} {state} {plan.model} version {plan.version} ({kind})")
    manifest = more.get("manifest")
    if manifest:
        parity = manifest["parity"]
        print(
            f"largest drift {parity['largest_drift_cosine']:.2g} from the {parity['compared_with']} "
            f"over {parity['crops']} crops"
        )
    return DONE


def _source(repository: ModelRepository, onnx: OnnxVersion) -> Source:
    """The source model that the ONNX model's manifest names; ``find_onnx`` could read that already."""
    path = repository.manifest_path(onnx_model(onnx.name), onnx.version)
    try:
        return located(json.loads(path.read_text(encoding="utf-8")).get("source_location"))
    except OptionError as error:
        raise RepositoryError(f"{path}: source_location: {error} Build the model again.") from error


def _crops(folder: Path | None) -> Crops | None:
    """Read the crops of a folder, evenly chosen if there are very many: uint8 [N, 112, 112, 3]."""
    if folder is None:
        return None
    paths = list(find_images([folder]))
    if not paths:
        raise OptionError(f"{folder} has no images; --calibration-dir expects 112x112 face crops.")
    step = -(-len(paths) // _MOST_CROPS)
    return np.stack([read_crop(path) for path in progress(paths[::step], unit="crop")])
