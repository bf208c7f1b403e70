"""Releases of a small family, and who serves it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from arcface_builder.release import Releases
from arcface_builder.repository.publish import ModelRepository
from arcface_client import get_embedding_backend
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.models.golden import golden_crops

NAME = "small"
EXPLICIT = ("--model-control-mode=explicit", "--load-model=small_onnx")


def releases_of(root: Path, url: str) -> Releases:
    return Releases(ModelRepository(root), NAME, [url] if url else [])


def pooled(url: str) -> EmbeddingBackend:
    embedder = get_embedding_backend(
        "triton", triton_url=url, embedding_model=NAME, triton_recheck_s=0.1, allow_cpu_fallback=False
    )
    embedder.ensure_ready()
    return embedder


def served_by(embedder: EmbeddingBackend, calls: int = 1) -> Counter[int | None]:
    """How many calls each version serves."""
    answers = [embedder.encode(golden_crops()[:1], return_source=True)[1] for _ in range(calls)]
    return Counter(source.version for answer in answers for source in answer.sources)


def states_of(embedder: EmbeddingBackend) -> dict[str, str]:
    return {one.candidate.split(" ")[0]: one.state for one in embedder.diagnostics().candidates}


def versions_of(root: Path) -> dict[int, str]:
    return {one.version: one.state for one in releases_of(root, "").listed()}
