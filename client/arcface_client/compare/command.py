"""One run of ``arcface-client compare``: open what is compared, measure, close, report."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from datetime import datetime, timezone

from ..client import EmbeddingClient
from ..commandline import require
from ..errors import InputError
from ..settings import PipelineSettings
from .comparison import compare
from .embedders import Embedder
from .labelled_pairs import verify_all
from .opening import is_file, open_embedders, siblings_on
from .pair_file import read_pair_file
from .reference import Reference
from .report import Report, versions
from .samples import generated_samples, samples_from


def run(specs: list[str], settings: PipelineSettings, arguments: argparse.Namespace) -> Report:
    """Compare what the arguments of the command name.

    Args:
        specs: Models and files; none is every ready version of the settings' model.
        settings: The server, the model, and the tolerance.
        arguments: The command's flags.

    Raises:
        ArcFaceError: Something named is not there, or failed.
    """
    # What can be wrong with files is said before any model is loaded.
    if arguments.images or arguments.pairs:
        require("PIL", extra="cli", purpose="Reading images")
    pair_file = read_pair_file(arguments.pairs) if arguments.pairs else None
    if arguments.images:
        samples = samples_from(arguments.images, arguments.n_samples, resize=arguments.resize)
    else:
        samples = generated_samples(arguments.n_samples)

    triton = settings.triton

    def connect(model: str, version: int | None) -> EmbeddingClient:
        return dataclasses.replace(triton, model=model, version=version).client()

    with ExitStack() as stack:
        server = None
        if not specs or not all(is_file(spec) for spec in [*specs, *arguments.control_model]):
            with triton.client() as client:
                server = client.status()
        embedders: list[Embedder] = []
        if arguments.reference:
            embedders.append(stack.enter_context(Reference(arguments.reference)))
        if not specs and server is not None:
            specs = siblings_on(server, settings.embedding.model)
        embedders += open_embedders(specs, connect, server, stack)
        if len(embedders) < 2:
            raise InputError(
                f"{embedders[0].name} is all that is ready on {triton.urls[0]}: there is nothing to compare "
                "it with. Publish another version or sibling, or give --reference FILE."
            )
        others = open_embedders(arguments.control_model, connect, server, stack)
        comparison = compare(
            embedders,
            samples.crops,
            batch_size=arguments.batch_size,
            allowed_drift_cosine=settings.embedding.max_drift_cosine,
            threshold=arguments.threshold,
            other_models=others,
        )
        verification = None
        if pair_file is not None:
            verification = verify_all(
                embedders,
                pair_file,
                batch_size=arguments.batch_size,
                threshold=arguments.threshold,
                mirrored=arguments.mirrored,
                resize=arguments.resize,
            )
    return Report(
        comparison=comparison,
        samples=samples,
        verification=verification,
        batch_size=comparison.runs[0].batch_size,
        allowed_drift_cosine=settings.embedding.max_drift_cosine,
        threshold=arguments.threshold,
        command=arguments.command_line,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=versions(None if server is None else server.version),
    )
