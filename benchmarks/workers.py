"""Rivals, each in a process of its own, because two thread pools in one process disturb each other."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from arcface_builder.check.crops import face_like
from arcface_client.contract import CROP_SHAPE, INPUT_NAME, OUTPUT_NAME, Crops

Embed = Callable[[Crops], Any]

_embed: Embed


def insightface(model_path: str) -> Embed:
    """InsightFace's own recogniser on the source model."""
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    recogniser = ArcFaceONNX(model_path)
    recogniser.prepare(ctx_id=-1)
    return lambda crops: recogniser.get_feat(list(crops))


def onnxruntime(model_path: str) -> Embed:
    """ONNX Runtime on the serving graph."""
    from arcface_client.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(model_path).embed


def triton(url: str, model: str) -> Embed:
    """This project's client through Triton."""
    from arcface_client import EmbeddingClient

    return EmbeddingClient(url, model).encode


def bare(url: str, model: str) -> Embed:
    """The shortest loop that tritonclient allows: one request, nothing checked, nothing retried."""
    from tritonclient import grpc

    client = grpc.InferenceServerClient(url)

    def embed(crops: Crops) -> Any:
        image = grpc.InferInput(INPUT_NAME, list(crops.shape), "UINT8")
        image.set_data_from_numpy(crops)
        return client.infer(model, [image]).as_numpy(OUTPUT_NAME)

    return embed


def selecting(url: str, name: str) -> Embed:
    """This project's embedder: replica pool, cooldowns, counters, and the threads in the background."""
    from arcface_client.backends.pooled import TritonBackend

    return TritonBackend(url, name).encode


def pipeline(url: str, name: str, repository: str) -> Embed:
    """What a pipeline calls."""
    from arcface_client import get_embedding_backend

    return get_embedding_backend(
        "triton",
        triton_url=url,
        embedding_model=name,
        embedding_model_repository=repository,
        allow_cpu_fallback=False,
    ).encode


class Worker(ProcessPoolExecutor):
    """A rival in a process of its own.

    Args:
        make: Makes the function to measure; called in the new process.
        arguments: Arguments for ``make``.
    """

    def __init__(self, make: Callable[..., Embed], *arguments: str) -> None:
        super().__init__(1, multiprocessing.get_context("spawn"), _load, (make, arguments))

    def seconds(self, count: int, repeats: int) -> float:
        """Embed the same ``count`` crops ``repeats`` times; seconds for all."""
        return self.submit(_seconds, count, repeats).result()


def _load(make: Callable[..., Embed], arguments: tuple[str, ...]) -> None:
    global _embed
    _embed = make(*arguments)


def _seconds(count: int, repeats: int) -> float:
    faces = face_like(64)
    crops = np.resize(faces, (count, *CROP_SHAPE))
    _embed(crops[: len(faces)])  # wakes threads and caches after the others' turns
    started = time.perf_counter()
    for _ in range(repeats):
        if len(_embed(crops)) != count:
            raise RuntimeError(f"Not all of {count} crops were embedded.")
    return time.perf_counter() - started
