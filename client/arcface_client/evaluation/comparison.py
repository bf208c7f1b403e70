"""One comparison: open the systems, measure them, close them, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract import Progress, no_progress
from ..errors import InputError, require
from ..models.golden import cannot_tell_apart, golden_crops
from ..models.normalisation import Pixels
from ..models.repository import LocalModels
from .controls import run_controls
from .fit import find_fits
from .measure import measure
from .pairs import PairFile, read_pair_file, score_pairs
from .report import FLIP_CROPS, Report, result_of, versions
from .samples import Samples, generated_samples, samples_from
from .scores import agreement, flips, similarities_of_all_pairs
from .systems import System, is_file, open_reference, open_systems, siblings_on

if TYPE_CHECKING:
    from ..settings import PipelineSettings


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and on which crops.

    Attributes:
        models: Models and files; none means every ready version of the settings' model.
        reference: ONNX file or pack of the source network; None compares without it.
        pixels: What the reference takes; None finds out.
        control_models: Models of another source, which the comparison must tell apart.
        images: Folder of face crops; None generates crops.
        n_samples: Number of crops.
        resize: Scale crops of another size.
        batch_size: Crops in a batch.
        threshold: Cosine similarity from which two crops count as one person.
        pairs: Verification set; None verifies nothing.
        mirrored: Add the mirrored crop's embedding in the verification.
        command: The command line, for the report.
    """

    models: Sequence[str] = ()
    reference: str | None = None
    pixels: Pixels | None = None
    control_models: Sequence[str] = ()
    images: Path | None = None
    n_samples: int = 100
    resize: bool = False
    batch_size: int = 32
    threshold: float = 0.3
    pairs: Path | None = None
    mirrored: bool = False
    command: str = ""


def compare(options: Options, settings: PipelineSettings, progress: Progress = no_progress) -> Report:
    """Compare models of a server, ONNX files, and InsightFace.

    Args:
        options: What to compare, and on which crops.
        settings: The server, the model, and the tolerance.
        progress: Called as the work goes on.

    Raises:
        ArcFaceError: Something that was named is missing, or failed.
    """
    # Files are checked first, because models may take minutes to load.
    if options.images or options.pairs:
        require("PIL", extra="cli", purpose="Reading images")
    pair_file = None if options.pairs is None else read_pair_file(options.pairs)
    if options.images is None:
        samples = generated_samples(options.n_samples)
    else:
        samples = samples_from(options.images, options.n_samples, resize=options.resize, progress=progress)

    with ExitStack() as stack:
        server, names = None, options.models
        if not names or not all(map(is_file, [*names, *options.control_models])):
            with settings.triton.client() as client:
                server = client.status()
            names = names or siblings_on(server, settings.embedding.model)
        systems = []
        if options.reference is not None:
            models = LocalModels(settings.embedding.model_repository)
            systems.append(open_reference(options.reference, options.pixels, models, stack))
        systems += open_systems(names, settings.triton, server, stack)
        if len(systems) < 2:
            raise InputError(
                f"{systems[0].name} is the only model that is ready on {systems[0].where}; expected two or "
                "more. Publish another version or sibling, or give --reference FILE."
            )
        others = open_systems(options.control_models, settings.triton, server, stack)
        return compare_systems(
            systems,
            samples,
            options,
            max_drift_cosine=settings.embedding.max_drift_cosine,
            control_models=others,
            pair_file=pair_file,
            server_version=None if server is None else server.version,
            progress=progress,
        )


def compare_systems(
    systems: Sequence[System],
    samples: Samples,
    options: Options,
    *,
    max_drift_cosine: float,
    control_models: Sequence[System] = (),
    pair_file: PairFile | None = None,
    server_version: str | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Compare open systems with the first of them, the baseline.

    Args:
        systems: Two or more.
        samples: The crops, at least two.
        options: How to compare; what they name is open already.
        max_drift_cosine: The tolerance.
        control_models: Models of another source, as controls.
        pair_file: Verification set; None verifies nothing.
        server_version: Triton's version, for the report; None without a server.
        progress: Called as the work goes on.

    Raises:
        ArcFaceError: A system failed.
    """
    golden = {each.name: each.embed(golden_crops()) for each in (*systems, *control_models)}
    if len({embeddings.shape[1] for embeddings in golden.values()}) > 1:
        widths = ", ".join(f"{name} gives {own.shape[1]} numbers" for name, own in golden.items())
        raise InputError(f"{widths}; embeddings of different widths cannot be compared. Name other models.")
    told = {each.name: cannot_tell_apart(golden[each.name]) for each in systems}
    crops, threshold = samples.crops, options.threshold
    batch_size = min(options.batch_size, len(crops))
    measured = measure(systems, crops, batch_size, progress)
    similar = [similarities_of_all_pairs(own.embeddings[:FLIP_CROPS]) for own in measured]
    agreements = [
        agreement(
            measured[0].name,
            own.name,
            measured[0].embeddings,
            own.embeddings,
            flips(similar[0], of_pairs, threshold),
        )
        for own, of_pairs in zip(measured[1:], similar[1:], strict=True)
    ]
    progress("running the negative controls", None)
    controls = run_controls(
        systems[0], control_models, crops, batch_size=batch_size, max_drift_cosine=max_drift_cosine
    )
    drifting = {a.other: golden[a.other] for a in agreements if not a.drift_max <= max_drift_cosine}
    if drifting and systems[0].embed_as is not None:
        progress("trying other channel orders and normalisations", None)
    verification = None
    if pair_file is not None:
        verification = score_pairs(
            systems,
            pair_file,
            batch_size=options.batch_size,
            threshold=threshold,
            mirrored=options.mirrored,
            resize=options.resize,
            progress=progress,
        )
    return Report(
        systems=measured,
        agreements=agreements,
        controls=controls,
        fits=find_fits(systems[0], drifting),
        warnings=[f"{name}: {why}" for name, why in told.items() if why],
        result=result_of(measured, agreements, controls, max_drift_cosine),
        samples=samples,
        batch_size=batch_size,
        max_drift_cosine=max_drift_cosine,
        threshold=threshold,
        command=options.command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(server_version),
        verification=verification,
    )
