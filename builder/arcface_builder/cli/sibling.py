"""What ``arcface-builder compile`` does for a runtime that reads ONNX, and what it shares with plans."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from arcface_client.cli.terminal import print_json, progress
from arcface_client.contract import Crops, Progress
from arcface_client.evaluation.samples import samples_from
from arcface_client.models.plan_manifest import PlanParity
from arcface_client.models.repository import LocalOnnx
from arcface_client.settings import load_tensorrt_settings, variable

from ..check.accuracy import reference_for_plans
from ..check.task import TaskGate
from ..errors import OptionError, PrecisionError, RepositoryError
from ..graph.edit import parse
from ..graph.mixed import calibration_halves, quantised_graph
from ..graph.serving import takes_one_crop
from ..repository.publish import ModelRepository
from ..sibling import KINDS, compile_sibling, opened
from ..source.load import Source, located, source_embedder

TOLERANCE: Final = "validation.max_drift_cosine"
"""A setting that only a file or the environment can give."""

_MOST_CALIBRATION_CROPS: Final = 512  # of a folder: more make no better ranges, and take minutes


def make_sibling(
    runtime: str,
    onnx: LocalOnnx,
    repository: Path,
    config: Path | None,
    precision: str | None,
    calibration_dir: Path | None,
    gate: TaskGate | None,
    recorded: Sequence[str],
    instances: int | None,
    *,
    as_json: bool,
) -> None:
    """Make the sibling for a runtime, and print what was made.

    The precision is "int8" or "mixed"; None runs the ONNX model's own file. ``recorded`` are the arguments
    that name the user's crops and pairs.
    """
    max_drift_cosine = load_tensorrt_settings(config).max_drift_cosine
    models = ModelRepository(repository)
    if precision and takes_one_crop(parse(onnx.content())):
        raise PrecisionError(
            f"{onnx.model} embeds one crop at a time; {runtime} runs it without --precision."
        )
    command = ["arcface-builder", "compile", "--name", onnx.name, "--version", str(onnx.version)]
    command += ["--repository", str(repository), "--runtime", runtime]
    if precision:
        command += ["--precision", precision]
    command += recorded
    with progress(onnx.name) as report:
        crops = crops_from(calibration_dir, report)
        held_out = calibration_halves(crops)[1] if precision else crops
        quantise = partial(
            quantised_graph,
            onnx.content(),
            str(precision),
            crops,
            max_drift_cosine=max_drift_cosine,
            least_channels=KINDS[runtime].least_channels,
            judge=partial(opened, KINDS[runtime]),
            report=report,
        )
        added = compile_sibling(
            KINDS[runtime],
            onnx,
            models,
            lambda: reference_for_plans(
                onnx.path,
                source_embedder(source_of(models, onnx), onnx.source_sha256),
                held_out,
                max_drift_cosine=max_drift_cosine,
                in_int8=precision is not None,
                report=report,
            ),
            quantise=quantise if precision else None,
            gate=gate,
            command=f"{variable(TOLERANCE)}={max_drift_cosine} {shlex.join(command)}",
            instances=instances,
            report=report,
        )
    manifest = added.manifest
    if precision not in (None, manifest.precision):
        raise RepositoryError(
            f"{manifest.model} version {manifest.version} is there already, in {manifest.precision}, and "
            f"{precision} was asked for. A published version is never changed: build the next one, or under "
            "another --name."
        )
    if as_json:
        place = {"model": manifest.model, "version": manifest.version, "path": str(added.path)}
        print_json({"siblings": [{**place, "is_new": added.is_new}], "manifest": asdict(manifest)})
        return
    state = "added" if added.is_new else "is there already"
    made = f"{runtime} {manifest.runtime_version}, {manifest.precision} on {manifest.device}"
    print(f"{manifest.model} version {manifest.version} {state} ({made})")
    print_parity(manifest.parity)


def print_parity(parity: PlanParity) -> None:
    """Print what a model was checked for."""
    for loss in parity.task:
        low, high = loss.interval
        print(
            f"{loss.rate} {loss.model:.4f}, and {loss.reference:.4f} of the ONNX model, over {loss.pairs:,} "
            f"pairs: a loss of {loss.loss:.4f} (95 % interval {low:.4f} to {high:.4f})"
        )
    print(
        f"largest drift {parity.largest_drift_cosine:.2g} from the {parity.compared_with} "
        f"over {parity.crops} crops"
    )


def source_of(repository: ModelRepository, onnx: LocalOnnx) -> Source:
    """The source model that the ONNX model's manifest names."""
    try:
        return located(onnx.manifest.source_location)
    except OptionError as error:
        path = repository.manifest_path(onnx.model, onnx.version)
        raise RepositoryError(f"{path}: source_location: {error} Build the model again.") from error


def crops_from(folder: Path | None, report: Progress) -> Crops | None:
    """Read the crops of a folder, evenly chosen if there are very many: uint8 [N, 112, 112, 3]."""
    return None if folder is None else samples_from(folder, _MOST_CALIBRATION_CROPS, progress=report).crops
