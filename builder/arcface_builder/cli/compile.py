"""``arcface-builder compile``: a plan for the GPU at hand, or a fleet's plans from the store."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from arcface_client.cli.terminal import UsageError, checked, print_json, progress, say
from arcface_client.models.embedding_space import QUANTISED
from arcface_client.models.repository import LocalOnnx
from arcface_client.settings import TensorRtSettings, load_tensorrt_settings, variable

from ..build import DEFAULT_REPOSITORY
from ..check.task import TaskGate
from ..compile import PlanRequest, compile_plan, compile_with_fallback
from ..errors import check_range
from ..fleet import assemble
from ..graph.edit import parse
from ..graph.mixed import calibration_halves
from ..graph.precision import is_quantised
from ..graph.serving import takes_one_crop
from ..repository.config import MOST_INSTANCES
from ..repository.plans import AddedPlan
from ..repository.publish import ModelRepository, find_onnx
from ..store.plan_store import open_store
from ..store.stored import sm_of
from ..trt.gpu import gpu_at_hand
from ..trt.options import LEAST_WORKSPACE_MB, MOST_CROPS, BuildOptions
from .options import (
    BUCKET_KEY,
    Bucket,
    CacheDir,
    Config,
    EndpointUrl,
    Json,
    Name,
    Precision,
    Repository,
    flag,
    recorded_path,
)
from .sibling import TOLERANCE, crops_from, make_sibling, print_parity, source_of

_MAX_LOSS: Final = 0.001
_plan = partial(typer.Option, rich_help_panel="The plan")
_fleet = partial(typer.Option, rich_help_panel="A fleet's plans, without a GPU")

_OF_INT8: Final = "--pairs judges what --precision int8 loses; other precisions keep within a drift."
_OF_EVERY_RUNTIME: Final = (
    *("name", "repository", "version", "config", "json", "runtime"),
    *("precision", "calibration_dir", "pairs", "max_accuracy_loss", "instances"),
)
"""The options that are not of TensorRT plans alone."""

_WITHOUT_FLAG: Final = (
    "tensorrt.hardware_compatible",
    "tensorrt.small_batch_profile",
    TOLERANCE,
)
"""The settings of a plan that only a file or the environment can give."""


def _sms(text: str) -> list[str]:
    return [sm_of(part.strip()) for part in text.split(",")]


def compile_(
    context: typer.Context,
    name: Name,
    repository: Repository = DEFAULT_REPOSITORY,
    version: Annotated[
        int | None, typer.Option(metavar="N", help="Version of NAME_onnx; default: the newest.")
    ] = None,
    config: Config = None,
    json: Json = False,
    runtime: Annotated[
        Literal["tensorrt", "cudnn", "openvino"],
        typer.Option(
            help="tensorrt: a plan for this machine's GPU, in NAME_trt. cudnn: for GPUs from compute "
            "capability 8.0, in float16, in NAME_cudnn. openvino: for processors, in bfloat16 where they "
            "have it, in NAME_openvino. Of the plan options, these two take only --precision int8 or mixed."
        ),
    ] = "tensorrt",
    precision: Annotated[Precision | None, _plan(help="Default: tensorrt.precision.")] = None,
    fallback_precision: Annotated[
        bool,
        _plan(
            "--fallback-precision",
            help="Where a precision is refused, build the next more exact one instead.",
        ),
    ] = False,
    max_batch_size: Annotated[
        int | None,
        _plan(min=1, max=MOST_CROPS, help="Default: tensorrt.max_batch_size."),
    ] = None,
    opt_batch_size: Annotated[
        int | None,
        _plan(min=1, help="The batch to tune for; default: tensorrt.opt_batch_size, or the largest."),
    ] = None,
    workspace_size_mb: Annotated[
        int | None,
        _plan(min=LEAST_WORKSPACE_MB, help="Default: tensorrt.workspace_size_mb."),
    ] = None,
    calibration_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Real face crops, for int8's ranges and for the accuracy check."),
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="With --precision int8: a verification set such as lfw.bin decides in place of the drift: "
            "the model must recognise people as well as the ONNX model. May be repeated.",
        ),
    ] = None,
    max_accuracy_loss: Annotated[
        float | None,
        typer.Option(
            min=1e-4,
            max=0.1,
            help="With --pairs: what verification accuracy and TAR at FAR 0.001 may lose; default: "
            f"{_MAX_LOSS:g}.",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_INSTANCES,
            help="Copies that serve side by side (on each GPU); default: tensorrt.instances for a plan, "
            "else what the model has, else 2 (1 for OpenVINO).",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        _plan(
            parser=recorded_path,
            metavar="FILE",
            help="TensorRT's measurements of kernels, which make the next build shorter; default: a file in "
            "the local cache.",
        ),
    ] = None,
    bucket: Bucket = None,
    endpoint_url: EndpointUrl = None,
    cache_dir: CacheDir = None,
    from_store: Annotated[
        bool,
        _fleet("--from-store", help="Take stored plans, build none."),
    ] = False,
    cc: Annotated[
        list[str] | None,
        _fleet(parser=checked(_sms), metavar="CC,...", help="Compute capabilities, for example 8.0,8.6."),
    ] = None,
    tensorrt_version: Annotated[
        str | None,
        _fleet(
            metavar="VERSION", help="Default: that of the version's other plans, or the newest that has all."
        ),
    ] = None,
    platform: Annotated[
        str | None,
        _fleet(
            metavar="OS-CPU",
            help="For example linux-aarch64; default: that of the version's other plans, or this machine's.",
        ),
    ] = None,
) -> None:
    """Make a TensorRT plan of NAME_onnx for this machine's GPU, and put it into the model NAME_trt.

    A stored plan is used if there is one. A new plan is kept only if its embeddings equal those of the
    source model; where that file is missing, those of the ONNX model. Options take precedence over
    ARCFACE_TENSORRT_* variables, and those over the settings' file. With --runtime cudnn or
    openvino, NAME_cudnn or NAME_openvino is made instead, by the same rule.
    """
    if max_accuracy_loss is not None and not pairs:
        raise UsageError("--max-accuracy-loss belongs to --pairs.")
    loss = _MAX_LOSS if max_accuracy_loss is None else max_accuracy_loss
    if runtime != "tensorrt":
        given = [name for name, value in context.params.items() if value]
        wrong = [flag(name) for name in given if name not in _OF_EVERY_RUNTIME]
        if wrong:
            raise UsageError(f"--runtime {runtime} takes no option of TensorRT plans: {', '.join(wrong)}.")
        if precision and precision not in QUANTISED:
            raise UsageError(
                f"--runtime {runtime} takes --precision {' or '.join(QUANTISED)}; without it, it computes in "
                "what is fastest and within the tolerance."
            )
        if pairs and precision != "int8":
            raise UsageError(_OF_INT8)
        make_sibling(
            runtime,
            find_onnx(ModelRepository(repository), name, version),
            repository,
            config,
            precision,
            calibration_dir,
            TaskGate.read(pairs, loss) if pairs else None,
            _recorded(calibration_dir, pairs, loss),
            instances,
            as_json=json,
        )
        return
    sms = [sm for part in cc or () for sm in part]
    if bool(sms) != from_store:
        raise UsageError("--cc and --from-store go together: a plan is built on the GPU that it is for.")
    if from_store and (timing_cache or fallback_precision):
        raise UsageError("--timing-cache and --fallback-precision are for builds, not for --from-store.")
    if not from_store and (tensorrt_version or platform):
        raise UsageError("--tensorrt-version and --platform belong to --from-store.")
    overrides: dict[str, object] = {
        "tensorrt.precision": precision,
        "tensorrt.max_batch_size": max_batch_size,
        "tensorrt.opt_batch_size": opt_batch_size,
        "tensorrt.workspace_size_mb": workspace_size_mb,
        "tensorrt.instances": instances,
        BUCKET_KEY: bucket,
    }
    settings = load_tensorrt_settings(config, arguments=overrides)
    if settings.enabled == "off":
        say("TensorRT is switched off (arcface_tensorrt.enabled); nothing was compiled")
        if json:
            print_json({"plans": []})
        return
    if settings.instances is not None:
        check_range("instances", settings.instances, 1, MOST_INSTANCES)
    if pairs and settings.precision != "int8":
        raise UsageError(_OF_INT8)
    models = ModelRepository(repository)
    onnx = find_onnx(models, name, version)
    options, network = BuildOptions.from_settings(settings, timing_cache), parse(onnx.content())
    if takes_one_crop(network):
        say(f"{onnx.model} embeds one crop at a time, and so do its plans")
        options = replace(options, max_batch_size=1, opt_batch_size=None)
    with progress(onnx.name) as report:
        crops = crops_from(calibration_dir, report)
        if options.precision in QUANTISED and not is_quantised(network):
            calibration_halves(crops)  # checked before the GPU is looked for
        request = PlanRequest(
            onnx=onnx,
            options=options,
            max_drift_cosine=settings.max_drift_cosine,
            calibration=crops,
            source=None if from_store else source_of(models, onnx),
            gate=TaskGate.read(pairs, loss) if pairs else None,
            command=lambda chosen: _command(
                onnx, repository, settings, options, chosen, _recorded(calibration_dir, pairs, loss)
            ),
        )
        gpu = None if from_store else gpu_at_hand()
        store = open_store(
            settings.engine_s3_bucket, endpoint_url=endpoint_url, cache_dir=cache_dir, progress=report
        )
        if gpu is None:
            added = assemble(
                request,
                sms,
                store,
                models,
                tensorrt_version=tensorrt_version,
                platform=platform,
                instances=settings.instances,
            )
        else:
            compile_it = compile_with_fallback if fallback_precision else compile_plan
            added = [compile_it(request, gpu, store, models, instances=settings.instances, report=report)]
    if json:
        one = {} if from_store else _record(added[0])
        print_json({"plans": [_place(plan) for plan in added], **one})
        return
    for plan in added:
        state, place = "added to" if plan.is_new else "already in", _place(plan)
        kind = f"TensorRT {place['tensorrt_version']}, {place['platform']}"
        print(f"{plan.path.name} {state} {plan.model} version {plan.version} ({kind})")
    if not from_store:
        print_parity(added[0].manifest.parity)


def _place(plan: AddedPlan) -> dict[str, Any]:
    """Where a plan is, for ``--json``."""
    key = plan.manifest.identity
    place = {"model": plan.model, "version": plan.version, "path": str(plan.path)}
    state = {"served": plan.served, "is_new": plan.is_new}
    return {**place, **state, "tensorrt_version": key.tensorrt_version, "platform": key.platform}


def _record(plan: AddedPlan) -> dict[str, Any]:
    """What is known of a plan that was built here, for ``--json``."""
    manifest = asdict(plan.manifest)
    return {"from_store": plan.from_store, "refusals": manifest["refusals"], "manifest": manifest}


def _command(
    onnx: LocalOnnx,
    repository: Path,
    settings: TensorRtSettings,
    options: BuildOptions,
    precision: str,
    recorded: Sequence[str],
) -> str:
    """The command that builds the plan again, whatever a file or the environment contain then."""
    command = [
        f"{variable(key)}={str(getattr(settings, key.rpartition('.')[2])).lower()}" for key in _WITHOUT_FLAG
    ]
    command += ["arcface-builder", "compile", "--name", onnx.name, "--version", str(onnx.version)]
    command += ["--repository", str(repository)]
    command += ["--precision", precision, "--max-batch-size", str(options.max_batch_size)]
    command += ["--opt-batch-size", str(options.tuned_for)]
    command += ["--workspace-size-mb", str(options.workspace_size_mb)]
    # The crops, whatever the precision: the accuracy check uses them.
    kept = recorded if precision == "int8" else recorded[:2] if "--calibration-dir" in recorded else ()
    return shlex.join([*command, *kept])


def _recorded(calibration_dir: Path | None, pairs: Sequence[Path] | None, loss: float) -> list[str]:
    """The arguments that name a user's crops and pairs."""
    command = ["--calibration-dir", str(calibration_dir)] if calibration_dir else []
    for file in pairs or ():
        command += ["--pairs", str(file)]
    return [*command, "--max-accuracy-loss", f"{loss:g}"] if pairs else command
