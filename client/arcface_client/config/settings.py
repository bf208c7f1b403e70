"""Settings of a pipeline's embeddings: which way, which model, which server; see ``layers``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import ConfigError
from ..failover.intervals import Rhythm
from ..failover.server import RequestLimits
from ..models.naming import family, onnx_model
from ..triton.limits import DEFAULT_MAX_DRIFT_COSINE, DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S
from ..triton.tls import Tls
from . import tensorrt_settings
from .devices import Device, read_device
from .layers import BOOLEAN, NUMBER, PATH, TEXT, TEXTS, TOLERANCE, WHOLE, Defaults, Kind, one_of, read_layers

if TYPE_CHECKING:
    from ..triton.client import EmbeddingClient

DEFAULT_PATH: Final = Path("config/pipeline/embedding.yaml")

BackendType = Literal["pytorch", "tensorrt", "onnxruntime", "triton"]
BACKEND_TYPES: Final[tuple[BackendType, ...]] = ("pytorch", "tensorrt", "onnxruntime", "triton")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """Which way to embed, and with which model.

    Attributes:
        backend: "pytorch" (the reference through the insightface package), "tensorrt" and "onnxruntime" (in
            this process), or "triton" (a server).
        device: Where to compute in this process.
        allow_cpu_fallback: Let ONNX Runtime on the CPU of this process stand in for what cannot be used.
        tensorrt_config: File of the settings of TensorRT.
        model: Name of the family of models, as "arcface_r100" for arcface_r100_onnx and arcface_r100_trt.
        model_repository: The model repository, where it can be read from here.
        source: What the reference runs: an ONNX file, or the name of an InsightFace pack.
        providers: ONNX Runtime's execution providers in order of preference; empty leaves it to the device.
        candidates: Models on the server in order of preference, as "arcface_r100_trt:3"; empty finds them.
        max_drift_cosine: Largest 1 - cosine similarity of the golden crops that is let pass.
    """

    backend: BackendType
    device: Device
    allow_cpu_fallback: bool
    tensorrt_config: Path
    model: str
    model_repository: Path
    source: str
    providers: tuple[str, ...]
    candidates: tuple[str, ...]
    max_drift_cosine: float


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """Which servers, within what limits, and how closely they are watched.

    Attributes:
        urls: The servers, best first.
        model: The one model that ``client`` calls.
        version: Its version; None is the newest one that the server has ready.
        limits: Limits and certificates of requests.
        shadow_rate: Share of the live crops that the sibling embeds as well, to compare.
        rhythm: How often candidates are looked at.
    """

    urls: tuple[str, ...]
    model: str
    version: int | None
    limits: RequestLimits
    shadow_rate: float
    rhythm: Rhythm

    def required_urls(self) -> tuple[str, ...]:
        """The servers' URLs; raises ConfigError if there is none."""
        if not self.urls:
            raise ConfigError("There is no server's URL; give triton.url one or more, as localhost:8001.")
        return self.urls

    def client(self, url: str | None = None) -> EmbeddingClient:
        """Make a client of a server, by default the first; raises ConfigError if there is none."""
        from ..triton.client import EmbeddingClient  # brings gRPC, which backends in this process do without

        return EmbeddingClient(
            url or self.required_urls()[0],
            self.model,
            self.version,
            request_timeout_s=self.limits.request_timeout_s,
            max_in_flight=self.limits.max_in_flight,
            tls=self.limits.tls,
        )


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Everything that ``config/pipeline/embedding.yaml`` says."""

    embedding: EmbeddingSettings
    triton: TritonSettings


_RHYTHM: Final = Rhythm()

_AUTO_OR_OFF: Final = one_of({"auto": True, "off": False, "false": False})
"""YAML reads a bare ``off`` as false."""


def _family(text: str) -> str:
    if not text.strip() or family(text) != text:
        raise ValueError(text)
    return text


_FAMILY: Final = Kind(_family, "the name that models share, without _onnx or _trt, as arcface_r100")

_DEVICE: Final = Kind(read_device, "cpu, cuda, cuda:N for GPU N, or auto", (str,))

KEYS: Final[Defaults] = {
    "embedding.backend": (one_of({name: name for name in BACKEND_TYPES}), "pytorch"),
    "embedding.device": (_DEVICE, Device("cpu")),
    "embedding.allow_cpu_fallback": (BOOLEAN, True),
    "embedding.tensorrt_config": (PATH, tensorrt_settings.DEFAULT_PATH),
    "embedding.model": (_FAMILY, "arcface_r100"),
    "embedding.model_repository": (PATH, Path("model_repository")),
    "embedding.source": (TEXT, "buffalo_l"),
    "embedding.providers": (TEXTS, ()),
    "embedding.candidates": (TEXTS, ()),
    "validation.max_drift_cosine": (TOLERANCE, DEFAULT_MAX_DRIFT_COSINE),
    "triton.url": (TEXTS, ("localhost:8001",)),
    "triton.model": (TEXT, None),
    "triton.version": (WHOLE, None),
    "triton.request_timeout_s": (NUMBER, DEFAULT_REQUEST_TIMEOUT_S),
    "triton.max_in_flight": (WHOLE, DEFAULT_MAX_IN_FLIGHT),
    "triton.shared_memory": (_AUTO_OR_OFF, True),  # read from older files, without effect
    "triton.shadow_rate": (NUMBER, 0.0),
    "triton.recheck_s": (NUMBER, _RHYTHM.recheck_s),
    "triton.liveness_s": (NUMBER, _RHYTHM.liveness_s),
    "triton.prove_again_s": (NUMBER, _RHYTHM.prove_again_s),
    "triton.refused_again_s": (NUMBER, _RHYTHM.refused_again_s),
    "triton.tls.enabled": (BOOLEAN, False),
    "triton.tls.root_certificates": (PATH, None),
    "triton.tls.private_key": (PATH, None),
    "triton.tls.certificate_chain": (PATH, None),
}


def load_pipeline_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> PipelineSettings:
    """Read the settings.

    Args:
        path: A YAML file; None takes ``config/pipeline/embedding.yaml`` where that exists.
        environment: Environment variables.
        arguments: Values by key that go before all others; those that are None do not count.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown, or a value is of the wrong kind.
        InputError: A limit is out of its range.
    """
    values = read_layers(
        KEYS,
        path,
        usual_path=DEFAULT_PATH,
        environment=environment,
        arguments=arguments,
        others=("ARCFACE_TENSORRT_",),
    )
    tls = _section(values, "triton.tls.")
    wants_tls = tls.pop("enabled") or any(tls.values())
    triton = _section(values, "triton.")
    del triton["shared_memory"]
    embedding = EmbeddingSettings(**_section(values, "embedding."), **_section(values, "validation."))
    return PipelineSettings(
        embedding=embedding,
        triton=TritonSettings(
            urls=triton.pop("url"),
            model=triton.pop("model") or onnx_model(embedding.model),
            limits=RequestLimits(**_fields(RequestLimits, triton), tls=Tls(**tls) if wants_tls else None),
            rhythm=Rhythm(**_fields(Rhythm, triton)),
            **triton,
        ),
    )


def _section(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Take the values of a section out, under their names in it."""
    return {key.removeprefix(prefix): values.pop(key) for key in list(values) if key.startswith(prefix)}


def _fields(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Take the values of a dataclass's fields out."""
    return {field.name: values.pop(field.name) for field in fields(kind) if field.name in values}
