"""One run of ``arcface-client compare``: open what is compared, measure, close, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..contract import Progress
from ..errors import InputError, require
from ..settings import PipelineSettings
from ..triton.client import EmbeddingClient
from .comparison import compare
from .embedders import Embedder
from .labelled_pairs import verify_all
from .opening import is_file, open_embedders, siblings_on
from .pair_file import read_pair_file
from .reference import Reference
from .report import Report, versions
from .samples import generated_samples, samples_from


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is to be compared, and on what.

    Attributes:
        models: Models and files; none is every ready version of the settings' model.
        reference: ONNX file or pack that InsightFace runs; None compares without it.
        control_models: Models of another source, which the comparison must tell apart.
        images: Folder of face crops; None takes generated ones.
        n_samples: How many crops.
        resize: Scale crops of another size.
        batch_size: Crops in a batch.
        threshold: Cosine similarity from which two crops are one person.
        pairs: Verification set; None verifies nothing.
        mirrored: Add the mirrored crop's embedding in the verification.
        command: What was typed, for the report.
    """

    models: Sequence[str]
    reference: str | None
    control_models: Sequence[str]
    images: Path | None
    n_samples: int
    resize: bool
    batch_size: int
    threshold: float
    pairs: Path | None
    mirrored: bool
    command: str


def run(options: Options, settings: PipelineSettings, progress: Progress) -> Report:
    """Do a comparison.

    Args:
        options: What is to be compared, and on what.
        settings: The server, the model, and the tolerance.
        progress: Is called as the work goes on.

    Raises:
        ArcFaceError: Something named is not there, or failed.
    """
    # What can be wrong with files is said before any model is loaded.
    if options.images or options.pairs:
        require("PIL", extra="cli", purpose="Reading images")
    pair_file = read_pair_file(options.pairs) if options.pairs else None
    if options.images:
        samples = samples_from(options.images, options.n_samples, resize=options.resize, progress=progress)
    else:
        samples = generated_samples(options.n_samples)

    specs, triton = options.models, settings.triton

    def connect(model: str, version: int | None) -> EmbeddingClient:
        return triton.model_copy(update={"model": model, "version": version}).client()

    with ExitStack() as stack:
        server = None
        if not specs or not all(is_file(spec) for spec in [*specs, *options.control_models]):
            with triton.client() as client:
                server = client.status()
        embedders: list[Embedder] = []
        if options.reference:
            embedders.append(stack.enter_context(Reference(options.reference)))
        if not specs and server is not None:
            specs = siblings_on(server, settings.embedding.model)
        embedders += open_embedders(specs, connect, server, stack)
        if len(embedders) < 2:
            raise InputError(
                f"{embedders[0].name} is all that is ready on {triton.url[0]}: there is nothing to compare "
                "it with. Publish another version or sibling, or give --reference FILE."
            )
        others = open_embedders(options.control_models, connect, server, stack)
        comparison = compare(
            embedders,
            samples.crops,
            batch_size=options.batch_size,
            max_drift_cosine=settings.embedding.max_drift_cosine,
            threshold=options.threshold,
            other_models=others,
            progress=progress,
        )
        verification = None
        if pair_file is not None:
            verification = verify_all(
                embedders,
                pair_file,
                batch_size=options.batch_size,
                threshold=options.threshold,
                mirrored=options.mirrored,
                resize=options.resize,
                progress=progress,
            )
    return Report(
        comparison=comparison,
        samples=samples,
        verification=verification,
        batch_size=comparison.runs[0].batch_size,
        max_drift_cosine=settings.embedding.max_drift_cosine,
        threshold=options.threshold,
        command=options.command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(None if server is None else server.version),
    )
