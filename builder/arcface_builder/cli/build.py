"""``arcface-builder build``: a source model into the next version of a served one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from arcface_client.cli.terminal import UsageError, checked, print_json, progress
from arcface_client.models.normalisation import FAMILIES, NAMED, Normalisation

from ..build import DEFAULT_REPOSITORY
from ..build import build as build_model
from ..repository.config import ServingOptions
from ..source.insightface_pack import DEFAULT_ROOT
from ..source.load import Checkpoint, InsightFacePack, OnnxFile, Source, Synthetic
from .options import Json, Name, Repository, flag, recorded_path

_source_option = partial(typer.Option, rich_help_panel="Source (exactly one)")
_detail = partial(typer.Option, rich_help_panel="Details of the source")
_serving_option = partial(
    typer.Option,
    rich_help_panel="Serving (for all versions of the model; without any of these they stay as they are)",
)
_DEFAULTS: Final = ServingOptions()
_NAMES: Final = ", ".join(f"{name} ({normalisation})" for name, normalisation in NAMED.items())


def build(
    name: Name,
    repository: Repository = DEFAULT_REPOSITORY,
    json: Json = False,
    onnx_path: Annotated[
        Path | None,
        _source_option(parser=recorded_path, metavar="FILE", help="An ONNX file; it is not changed."),
    ] = None,
    insightface_pack: Annotated[
        str | None,
        _source_option(metavar="PACK", help="InsightFace's pack, for example buffalo_l."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        _source_option(
            parser=recorded_path,
            metavar="FILE",
            help="A checkpoint of an IResNet of arcface_torch: .pth or .pt (need torch) or .safetensors.",
        ),
    ] = None,
    synthetic: Annotated[
        Literal["r18", "r34", "r50", "r100", "r200"] | None,
        _source_option(help="Seeded random weights: computes like the real one and cannot tell faces apart."),
    ] = None,
    normalisation: Annotated[
        Normalisation | None,
        _detail(
            parser=checked(Normalisation.parse),
            metavar="NAME|MEAN,STD",
            help="With --onnx-path or --checkpoint: what callers do to pixels 0 to 255, where the file "
            f"leaves it open: {_NAMES}, or mean and std, one number each or three. It overrules --family "
            "(default: by the file's SHA-256, else by what the graph computes, else pytorch).",
        ),
    ] = None,
    color: Annotated[
        Literal["rgb", "bgr"] | None,
        _detail(
            case_sensitive=False,
            help="With --onnx-path or --checkpoint: the channel order that callers give, where the file "
            "leaves it open. It overrules --family (default: rgb, unless the graph reverses the channels).",
        ),
    ] = None,
    family: Annotated[
        Literal["arcface", "adaface", "magface", "keras_insightface", "sface"] | None,
        _detail(
            help="With --onnx-path or --checkpoint: --normalisation and --color as that project's own code "
            "has them."
        ),
    ] = None,
    output: Annotated[
        str | None,
        _detail(
            metavar="NAME", help="With --onnx-path: the output that is the embedding, where several could be."
        ),
    ] = None,
    insightface_root: Annotated[
        Path | None,
        _detail(metavar="DIR", help=f"With --insightface-pack; default: {DEFAULT_ROOT}."),
    ] = None,
    accept_license: Annotated[
        bool,
        _detail(
            "--accept-license",
            help="With --insightface-pack: download a missing pack; InsightFace's packs are for "
            "non-commercial research only.",
        ),
    ] = False,
    seed: Annotated[int | None, _detail(help="With --synthetic; default: 0.")] = None,
    uneven_channels: Annotated[
        bool,
        _detail(
            "--uneven-channels",
            help="With --synthetic: channels whose sizes differ, as in trained networks, to try int8.",
        ),
    ] = False,
    device: Annotated[
        Literal["auto", "cpu", "gpu"] | None,
        _serving_option(
            help="Where ONNX Runtime computes. auto: on every GPU of the host, or on its CPU if it has none. "
            f"Default: {_DEFAULTS.device}."
        ),
    ] = None,
    instances: Annotated[
        int | None,
        _serving_option(help=f"Copies side by side, on each GPU; default: {_DEFAULTS.instances}."),
    ] = None,
    max_batch_size: Annotated[
        int | None,
        _serving_option(help=f"Largest batch; default: {_DEFAULTS.max_batch_size}."),
    ] = None,
    max_queue_delay_us: Annotated[
        int | None,
        _serving_option(
            help="How long a request may wait for a batch to fill, in microseconds; default: "
            f"{_DEFAULTS.max_queue_delay_us}."
        ),
    ] = None,
    intra_op_threads: Annotated[
        int | None,
        _serving_option(help="Threads of an instance; 0, the default, is one per physical core."),
    ] = None,
) -> None:
    """Build the next version of the model NAME_onnx in a Triton model repository.

    It is published only if its embeddings equal the source model's to 1e-5.
    """
    source = _source(
        {"onnx_path": onnx_path, "insightface_pack": insightface_pack}
        | {"checkpoint": checkpoint, "synthetic": synthetic},
        {"normalisation": normalisation, "color": color, "family": family, "output": output}
        | {"insightface_root": insightface_root}
        | {"accept_license": accept_license or None, "seed": seed}
        | {"uneven_channels": uneven_channels or None},
    )
    serving: dict[str, Any] = {
        "device": device,
        "instances": instances,
        "max_batch_size": max_batch_size,
        "max_queue_delay_us": max_queue_delay_us,
        "intra_op_threads": intra_op_threads,
    }
    serving = {option: value for option, value in serving.items() if value is not None}
    options = ServingOptions(**serving) if serving else None
    with progress(name) as report:
        built = build_model(source, name=name, repository=repository, options=options, report=report)
    if json:
        manifest = asdict(built.manifest)
        del manifest["golden"]["embeddings"]  # kilobytes; the manifest's file has them
        print_json({"path": str(built.path), **manifest})
        return
    drift = built.manifest.parity.max_abs_difference
    of = "its source"
    if built.manifest.compared_with != "source file":
        of = f"its source's {built.manifest.compared_with}, not of the file itself"
    print(f"{built.model} version {built.version} in {built.path}, within {drift:.1e} of {of}")


_PIXELS: Final = ("onnx_path", "checkpoint")
_BELONGS_TO: Final[Mapping[str, Sequence[str]]] = {
    "normalisation": _PIXELS,
    "color": _PIXELS,
    "family": _PIXELS,
    "output": ["onnx_path"],
    "insightface_root": ["insightface_pack"],
    "accept_license": ["insightface_pack"],
    "seed": ["synthetic"],
    "uneven_channels": ["synthetic"],
}


def _source(sources: dict[str, Any], details: dict[str, Any]) -> Source:
    """The source that the options name."""
    given = {name: value for name, value in sources.items() if value is not None}
    if len(given) != 1:
        raise UsageError(f"Give exactly one of {', '.join(map(flag, sources))}.")
    ((kind, value),) = given.items()
    details = {name: detail for name, detail in details.items() if detail is not None}
    for name in details:
        if kind not in _BELONGS_TO[name]:
            raise UsageError(f"{flag(name)} belongs to {' or '.join(map(flag, _BELONGS_TO[name]))}.")
    if "family" in details:
        color, normalisation = FAMILIES[details.pop("family")]
        details.setdefault("color", color)
        details.setdefault("normalisation", normalisation)
    match kind:
        case "onnx_path":
            return OnnxFile(value, **details)
        case "insightface_pack":
            return InsightFacePack(value, details.pop("insightface_root", DEFAULT_ROOT), **details)
        case "checkpoint":
            return Checkpoint(value, **details)
        case _:
            return Synthetic(value, **details)
