"""Make the embedder that a pipeline asks for, by its settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, InputError
from ..failover.intervals import Rhythm
from ..failover.server import RequestLimits
from ..models.embedding_space import EmbeddingSpace
from ..models.naming import is_plan, onnx_model, plan_model
from ..models.repository import LocalModels
from ..runtimes.base import CPU, read_device, switch_off_telemetry
from ..settings import BACKEND_TYPES, KEYS, Enabled, PipelineSettings, load_pipeline_settings
from .base import EmbeddingBackend
from .in_process import InProcessBackend
from .insightface import insightface_candidate
from .local_model import LocalCandidate
from .onnxruntime import onnx_candidate, provider_order
from .tensorrt import plan_candidate, switched_off

_log = logging.getLogger(__name__)

_KEYS: Final = {key.replace(".", "_"): key for key in KEYS}
"""Every setting as a keyword argument, as "triton_url" for triton.url."""


def get_embedding_backend(
    backend_type: str | None = None,
    device: str | None = None,
    tensorrt_config: str | Path | None = None,
    allow_cpu_fallback: bool | None = None,
    *,
    config: str | Path | None = None,
    registry: Any = None,
    **settings: object,
) -> EmbeddingBackend:
    """Make an embedder; ``ensure_ready`` then loads what it needs, and ``encode`` embeds.

    ::

        embedder = get_embedding_backend("triton", triton_url="localhost:8001")
        embedder.ensure_ready()
        embeddings = embedder.encode(face_crops)  # float32 (N, 512), unit length

    Args:
        backend_type: "insightface" (the reference, through the insightface package; "pytorch" is an alias),
            "tensorrt" or "onnxruntime" (in this process), or "triton" (a server); None leaves it to
            ``embedding.backend``.
        device: Where to compute in this process: "cpu", "cuda", "cuda:N", or "auto" for the best provider of
            ONNX Runtime that is there. A TensorRT plan runs on a GPU whatever it says, the first unless it
            names another. A server computes on what its own configuration says. None leaves it to
            ``embedding.device``.
        tensorrt_config: File of the settings of TensorRT; None leaves it to ``embedding.tensorrt_config``.
        allow_cpu_fallback: Let ONNX Runtime on the CPU of this process stand in for what cannot be used;
            never silently: a warning is logged, and ``encode(..., return_source=True)`` and ``diagnostics()``
            say so. None leaves it to ``embedding.allow_cpu_fallback``.
        config: File of the settings; None takes ``config/pipeline/embedding.yaml`` where that exists.
        registry: A Prometheus registry that is to have the counters (extra ``metrics``), as
            ``prometheus_client.REGISTRY``; one embedder a registry.
        **settings: Any setting, by its key with "_" for ".": ``triton_url="localhost:8001"``. It goes before
            the environment and the file.

    Raises:
        InputError: There is no such type of backend, device or setting, a setting is out of its range, or
            given twice.
        ConfigError: A file or variable cannot be used.
        MissingExtraError: A registry was given, but prometheus-client is not installed, or the best
            provider is asked for (device "auto"), but ONNX Runtime is not.
    """
    if backend_type not in (None, "pytorch", *BACKEND_TYPES):
        raise InputError(f"backend_type is {backend_type!r}; expected one of {', '.join(BACKEND_TYPES)}.")
    if device is not None:
        read_device(device)
    for name in settings.keys() - _KEYS.keys():
        raise InputError(f"There is no setting {name!r}; known ones: {', '.join(_KEYS)}.")
    arguments: dict[str, object] = {_KEYS[name]: value for name, value in settings.items()}
    for name, key, value in (
        ("backend_type", "embedding.backend", backend_type),
        ("device", "embedding.device", device),
        ("tensorrt_config", "embedding.tensorrt_config", tensorrt_config),
        ("allow_cpu_fallback", "embedding.allow_cpu_fallback", allow_cpu_fallback),
    ):
        given = arguments.get(key)
        if None not in (given, value):
            raise InputError(f"{name} is {value!r} and {key.replace('.', '_')} {given!r}; give one of them.")
        arguments[key] = given if value is None else value
    read = load_pipeline_settings(None if config is None else Path(config), arguments=arguments)
    return make_backend(read, registry=registry)


def make_backend(settings: PipelineSettings, *, registry: Any = None) -> EmbeddingBackend:
    """Make an embedder by settings that were read; see ``get_embedding_backend``.

    Raises:
        InputError: A setting is out of its range.
        ConfigError: The settings of TensorRT cannot be used, or leave no candidate.
        MissingExtraError: What the settings ask for needs a package that is not installed.
    """
    switch_off_telemetry()
    embedding = settings.embedding
    if embedding.backend == "triton":
        _say_what_is_not_used(settings)
        return _triton(settings, registry)
    return InProcessBackend(
        embedding.backend,
        _local_candidates(settings),
        max_drift_cosine=embedding.max_drift_cosine,
        registry=registry,
    )


def _say_what_is_not_used(settings: PipelineSettings) -> None:
    embedding = settings.embedding
    given = {"embedding.providers": ", ".join(embedding.providers)}
    if embedding.device.kind != "cpu":
        given["embedding.device"] = str(embedding.device)
    for name, value in given.items():
        if value:
            _log.warning(
                "%s is %s, which backend triton does not use: each model's config.pbtxt says where the "
                "server runs it, and what stands in for the server runs on the CPU",
                name,
                value,
            )


def _triton(settings: PipelineSettings, registry: Any) -> EmbeddingBackend:
    from .triton import TritonBackend

    embedding, server = settings.embedding, settings.triton
    models = LocalModels(embedding.model_repository)
    if not models.root.is_dir():
        _log.warning(
            "There is no folder %s (embedding.model_repository): the servers' models have no records here to "
            "be held against",
            models.root.absolute(),
        )

    def last_resort(identity: EmbeddingSpace | None) -> EmbeddingBackend:
        candidate = onnx_candidate(models, embedding.model, CPU)
        return InProcessBackend(
            "onnxruntime", [candidate], identity=identity, max_drift_cosine=embedding.max_drift_cosine
        )

    enabled = settings.tensorrt.enabled
    may_fall_back = embedding.allow_cpu_fallback and enabled != "required"
    return TritonBackend(
        server.url,
        embedding.model,
        _candidates(settings, enabled),
        references=models.golden,
        plans=models.only_plan,
        max_drift_cosine=embedding.max_drift_cosine,
        last_resort=last_resort if may_fall_back else None,
        limits=RequestLimits(
            request_timeout_s=server.request_timeout_s,
            max_in_flight=server.max_in_flight,
            tls=server.certificates,
        ),
        rhythm=Rhythm(
            recheck_s=server.recheck_s,
            liveness_s=server.liveness_s,
            prove_again_s=server.prove_again_s,
            refused_again_s=server.refused_again_s,
        ),
        shadow_rate=server.shadow_rate,
        registry=registry,
    )


def _candidates(settings: PipelineSettings, enabled: Enabled) -> tuple[str, ...]:
    """The models on the server that the settings leave; none leaves it to what is found there."""
    embedding = settings.embedding
    if enabled == "auto":
        return embedding.candidates
    wants_plans = enabled == "required"
    named = embedding.candidates or (plan_model(embedding.model), onnx_model(embedding.model))
    left = tuple(name for name in named if is_plan(name.partition(":")[0]) == wants_plans)
    if not left:
        word = "true" if wants_plans else "false"
        raise ConfigError(
            f"arcface_tensorrt.enabled is {word}, which leaves none of embedding.candidates "
            f"({', '.join(named)}); change one of them."
        )
    return left


def _local_candidates(pipeline: PipelineSettings) -> list[LocalCandidate]:
    """What may embed in this process, in order of preference."""
    settings = pipeline.embedding
    models, name = LocalModels(settings.model_repository), settings.model
    device, allow_cpu_fallback = settings.device, settings.allow_cpu_fallback
    providers = provider_order(device, settings.providers, allow_cpu_fallback=allow_cpu_fallback)
    if settings.backend == "insightface":
        return [
            insightface_candidate(models, name, settings.source, provider, device.index)
            for provider in providers
        ]
    onnx = [onnx_candidate(models, name, provider, device.index) for provider in providers]
    if settings.backend == "onnxruntime":
        return onnx
    enabled = pipeline.tensorrt.enabled
    if enabled == "required":
        return [plan_candidate(models, name, device.index)]
    plan = switched_off(name) if enabled == "off" else plan_candidate(models, name, device.index)
    return [plan, *(onnx if allow_cpu_fallback else [])]
