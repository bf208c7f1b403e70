"""What ``arcface-client`` does, apart from its command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

from .archive import EmbeddingArchive
from .commandline import DONE, FAILED, progress, require
from .contract import Crops
from .errors import ImageFileError
from .images import find_images, read_crop
from .settings import TritonSettings, load_settings


def _settings(arguments: argparse.Namespace) -> TritonSettings:
    flags = {
        "triton.url": arguments.url,
        "triton.model": getattr(arguments, "model", None),
        "triton.version": getattr(arguments, "version", None),
        "triton.request_timeout_s": arguments.timeout_s,
        "triton.tls.root_certificates": arguments.root_certificates,
        "triton.tls.private_key": arguments.private_key,
        "triton.tls.certificate_chain": arguments.certificate_chain,
    }
    return load_settings(arguments.config, arguments=flags)


def embed(arguments: argparse.Namespace) -> int:
    """Embed files and folders; ``arcface-client embed``."""
    require("PIL", extra="cli", purpose="Reading images")  # said before a server is asked
    files = list(find_images(arguments.paths))
    if not files:
        raise ImageFileError(f"There is no image in {', '.join(map(str, arguments.paths))}.")
    names: list[str] = []
    skipped: list[str] = []

    def crops() -> Iterator[Crops]:
        for file in progress(files, unit="crop"):
            try:
                crop = read_crop(file, resize=arguments.resize)
            except ImageFileError as error:
                print(f"skipped: {error}", file=sys.stderr)
                skipped.append(file)
                continue
            names.append(file)
            yield crop

    with _settings(arguments).client() as client, EmbeddingArchive(arguments.output) as archive:
        done = 0
        for embeddings in client.stream(crops()):
            archive.add(names[done : done + len(embeddings)], embeddings)
            done += len(embeddings)
        if not done:
            raise ImageFileError(
                f"None of {len(files)} files is a face crop; {arguments.output} is not written."
            )
    report = {"output": str(arguments.output), "embedded": done, "skipped": skipped}
    _print(
        report,
        arguments.json,
        f"{arguments.output}: {done} embeddings" + (f", {len(skipped)} files skipped" if skipped else ""),
    )
    return FAILED if skipped else DONE


def status(arguments: argparse.Namespace) -> int:
    """Show a server; ``arcface-client status``."""
    with _settings(arguments).client() as client:
        server = client.status()
    lines = [f"Triton {server.version} at {server.url}: {'ready' if server.ready else 'not ready'}"]
    for model in server.models:
        version = "-" if model.version is None else str(model.version)
        lines.append(
            f"  {model.name:<28} {version:>3}  {model.state or 'NOT LOADED':<12} {model.reason}".rstrip()
        )
    _print(dataclasses.asdict(server), arguments.json, "\n".join(lines))
    return DONE


def _print(report: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(report, indent=2) if as_json else text)
