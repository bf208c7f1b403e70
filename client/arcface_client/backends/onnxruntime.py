"""ONNX Runtime in this process: the repository's newest ONNX model, on the best provider that there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..contract import INPUT_NAME
from ..errors import require
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import golden_crops
from ..models.naming import onnx_model
from ..models.repository import LocalModels
from ..runtimes.base import COREML, CPU, CUDA, Device
from .local_model import LocalCandidate, LocalModel

BATCH_SIZE: Final = 32
"""Crops of one run: enough to keep every core at work, few enough to keep to a deadline."""

ENTRIES: Final = {"session.force_spinning_stop": "1"}
"""Idle threads spin between the operators of a run, where it pays, and not between runs."""


def onnx_candidate(models: LocalModels, name: str, provider: str, gpu: int = 0) -> LocalCandidate:
    """``{name}_onnx`` on a provider."""
    return LocalCandidate(
        f"{onnx_model(name)} on {provider}",
        lambda identity: load_onnx(models, name, provider, gpu, identity),
    )


def provider_order(device: Device, providers: Sequence[str], *, allow_cpu_fallback: bool) -> list[str]:
    """The providers that may be used, in order of preference.

    Args:
        device: Where to compute; "auto" is whatever is there of CUDA and CoreML, and otherwise the CPU.
        providers: A list to use in place of that.
        allow_cpu_fallback: Whether the CPU may stand in for something else that cannot be used.
    """
    if providers:
        first, *others = dict.fromkeys([*providers, CPU])
        return [first, *(name for name in others if name != CPU or allow_cpu_fallback)]
    if device.kind == "cuda":
        return [CUDA, CPU] if allow_cpu_fallback else [CUDA]
    if device.kind == "cpu":
        return [CPU]
    available = require("onnxruntime", extra="onnxruntime", purpose="This backend").get_available_providers()
    found = [provider for provider in (CUDA, COREML) if provider in available]
    return [*found, CPU] if allow_cpu_fallback or not found else found


def load_onnx(
    models: LocalModels,
    name: str,
    provider: str,
    gpu: int,
    identity: EmbeddingSpace | None = None,
) -> LocalModel:
    """Load the newest version of ``{name}_onnx`` that is of an identity, on a provider.

    Raises:
        InputError: There is no such provider.
        DeploymentError: There is no such model, ONNX Runtime is not installed, or the provider does not run.
    """
    require("onnxruntime", extra="onnxruntime", purpose="Embedding in this process")
    from ..runtimes.onnxruntime import OnnxRuntime, open_on

    found = models.onnx(name, space=identity)
    session = open_on(
        provider,
        found.path,
        options=provider_options(provider, gpu),
        entries=ENTRIES,
        try_out=lambda session: session.run(None, {INPUT_NAME: np.asarray(golden_crops()[:1])}),
    )
    return LocalModel(
        runtime=OnnxRuntime(found.path, session=session),
        backend="onnxruntime",
        model=found.model,
        version=found.version,
        path=found.path,
        batch_size=BATCH_SIZE,
        identity=found.manifest.embedding_space(),
        golden=found.manifest.golden_embeddings,
        precision="fp32",
        provider=provider,
    )


def provider_options(provider: str, gpu: int) -> dict[str, str]:
    """What a provider has to be told: which GPU, and that float32 is float32 there too (not TF32)."""
    return {"device_id": str(gpu), "use_tf32": "0"} if provider == CUDA else {}
