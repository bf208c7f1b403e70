"""Make the embedder that a pipeline asks for, by its settings."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, InputError
from ..failover.replica import Intervals, Origin
from ..models.naming import family_models, is_plan, onnx_model, sibling_model
from ..models.repository import LocalModels
from ..runtimes.base import CPU, read_device, switch_off_telemetry
from ..settings import BACKEND_TYPES, KEYS, Enabled, PipelineSettings, load_pipeline_settings
from .base import EmbeddingBackend
from .insightface import insightface_origin
from .local import cudnn_origin, onnx_origin, openvino_origin, plan_origin, provider_order, switched_off
from .pooled import PooledBackend, TritonBackend
from .shadow import ShadowBackend

_log = logging.getLogger(__name__)

_KEYS: Final = {key.replace(".", "_"): key for key in KEYS}
"""Every setting as a keyword argument, for example "triton_url" for triton.url."""


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
        embeddings = embedder.encode(face_crops)  # float32 (N, D), unit length

    Args:
        backend_type: "insightface" (the reference, through the insightface package; "pytorch" is an alias),
            "cudnn", "tensorrt", "openvino" or "onnxruntime" (in this process), or "triton" (a server); None
            leaves it to ``embedding.backend``.
        device: Where to compute in this process: "cpu", "cuda", "cuda:N", or "auto" for the best provider of
            ONNX Runtime that is there. A TensorRT plan runs on a GPU whatever it says, the first unless it
            names another. A server computes where its own configuration says. None leaves it to
            ``embedding.device``.
        tensorrt_config: File of the settings of TensorRT; None leaves it to ``embedding.tensorrt_config``.
        allow_cpu_fallback: Let ONNX Runtime on the CPU of this process stand in for what cannot be used; a
            warning is logged, and ``encode(..., return_source=True)`` and ``diagnostics()`` say so. None
            leaves it to ``embedding.allow_cpu_fallback``.
        config: File of the settings; None takes ``config/pipeline/embedding.yaml`` where that exists.
        registry: A Prometheus registry for the counters (extra ``metrics``), for example
            ``prometheus_client.REGISTRY``; one embedder for each registry.
        **settings: Any setting, by its key with "_" for ".": ``triton_url="localhost:8001"``. It takes
            precedence over the environment and the file.

    Raises:
        InputError: The backend, device or setting does not exist, or is given twice.
        ConfigError: A file, a variable or a setting's value cannot be used.
        MissingExtraError: A registry was given, but prometheus-client is not installed, or the best
            provider is asked for (device "auto"), but ONNX Runtime is not.
    """
    if backend_type not in (None, "pytorch", *BACKEND_TYPES):
        raise InputError(f"backend_type is {backend_type!r}; expected one of {', '.join(BACKEND_TYPES)}.")
    if device is not None:
        read_device(device)
    for name in settings.keys() - _KEYS.keys():
        near = difflib.get_close_matches(name, _KEYS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known ones: {', '.join(_KEYS)}."
        raise InputError(f"There is no setting {name!r}; {hint}")
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
        return _triton(settings, registry)
    return PooledBackend(
        embedding.backend,
        _local(settings),
        max_drift_cosine=embedding.max_drift_cosine,
        space=embedding.space,
        registry=registry,
    )


def make_single(settings: PipelineSettings, version: int | None = None) -> EmbeddingBackend:
    """Make an embedder that no other model stands in for: ``triton.model``, or a backend in this process.

    Args:
        settings: As for ``make_backend``.
        version: Of the model on the servers; None takes the newest.

    Raises:
        ArcFaceError: As ``make_backend``.
    """
    if settings.embedding.backend != "triton":
        return make_backend(settings)
    name = str(settings.triton.model)
    return TritonBackend(
        settings.triton.required_urls(),
        settings.embedding.model,
        [name if version is None else f"{name}:{version}"],
        records=LocalModels(settings.embedding.model_repository),
        max_drift_cosine=settings.embedding.max_drift_cosine,
        space=settings.embedding.space,
        limits=settings.triton.limits,
    )


def _triton(settings: PipelineSettings, registry: Any) -> EmbeddingBackend:
    embedding, server = settings.embedding, settings.triton
    models = LocalModels(embedding.model_repository)
    if not models.root.is_dir():
        _log.warning(
            "There is no folder %s (embedding.model_repository): the servers' models cannot be checked "
            "against manifests",
            models.root.absolute(),
        )
    enabled = settings.tensorrt.enabled
    may_fall_back = embedding.allow_cpu_fallback and enabled != "required"

    def backend(candidates: Sequence[str], local: Sequence[Origin], registry: Any) -> TritonBackend:
        return TritonBackend(
            server.url,
            embedding.model,
            candidates,
            local=local,
            records=models,
            max_drift_cosine=embedding.max_drift_cosine,
            # Models that arcface_tensorrt.enabled leaves are none that the user named.
            space=None if embedding.candidates else embedding.space,
            limits=server.limits,
            spread=server.spread,
            intervals=Intervals(
                recheck_s=server.recheck_s,
                liveness_s=server.liveness_s,
                prove_again_s=server.prove_again_s,
                refused_again_s=server.refused_again_s,
            ),
            registry=registry,
        )

    candidates = _candidates(settings, enabled)
    local = _on_this_cpu(models, embedding.model) if may_fall_back else []
    if not server.shadow_rate:
        return backend(candidates, local, registry)
    return ShadowBackend(
        backend(candidates, local, None),
        backend([onnx_model(embedding.model)], [], None),
        server.shadow_rate,
        embedding.max_drift_cosine,
        registry=registry,
    )


def _candidates(settings: PipelineSettings, enabled: Enabled) -> tuple[str, ...]:
    """The models on the server that the settings leave; none leaves it to what is found there."""
    embedding = settings.embedding
    if enabled == "auto":
        return embedding.candidates
    wants_plans = enabled == "required"
    named = embedding.candidates or family_models(embedding.model)
    left = tuple(name for name in named if is_plan(name.partition(":")[0]) == wants_plans)
    if not left:
        word = "true" if wants_plans else "false"
        raise ConfigError(
            f"arcface_tensorrt.enabled is {word}, which leaves none of embedding.candidates "
            f"({', '.join(named)}); change one of them."
        )
    return left


def _local(settings: PipelineSettings) -> list[Origin]:
    """What may embed in this process, in order of preference."""
    embedding, enabled = settings.embedding, settings.tensorrt.enabled
    models, name, gpu = LocalModels(embedding.model_repository), embedding.model, embedding.device.index
    providers = provider_order(
        embedding.device, embedding.providers, allow_cpu_fallback=embedding.allow_cpu_fallback
    )
    if embedding.backend == "insightface":
        return [insightface_origin(models, embedding.source, each, gpu) for each in providers]
    onnx = [onnx_origin(models, name, each, gpu) for each in providers]
    if embedding.backend == "onnxruntime":
        return onnx
    if embedding.backend == "cudnn":
        return [cudnn_origin(models, name, gpu), *(onnx if embedding.allow_cpu_fallback else [])]
    if embedding.backend == "openvino":
        return [openvino_origin(models, name), *(onnx if embedding.allow_cpu_fallback else [])]
    if enabled == "required":
        return [plan_origin(models, name, gpu)]
    plan = switched_off(name) if enabled == "off" else plan_origin(models, name, gpu)
    return [plan, *(onnx if embedding.allow_cpu_fallback else [])]


def _on_this_cpu(models: LocalModels, name: str) -> list[Origin]:
    """What stands in for servers: OpenVINO, where the model repository has its sibling, and ONNX Runtime."""
    openvino = [openvino_origin(models, name)] if models.versions(sibling_model(name, "openvino")) else []
    return [*openvino, onnx_origin(models, name, CPU)]
