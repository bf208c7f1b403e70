"""What a user sets, read once: arguments, then the environment, then the YAML files, then the defaults.

A setting's key is its path in a file, for example ``triton.url`` in ``config/pipeline/embedding.yaml``. Its
environment variable is ``ARCFACE_`` and the key in capitals, ``ARCFACE_TRITON_URL``; an empty one is ignored.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from .errors import ConfigError
from .models.embedding_space import SpaceName
from .models.naming import family, onnx_model
from .models.schema import expectation
from .models.signature import PUBLIC_KEY
from .runtimes.base import Device, read_device
from .triton.limits import DEFAULT_MAX_DRIFT_COSINE, RequestLimits, Tls

if TYPE_CHECKING:
    from .triton.client import EmbeddingClient

_log = logging.getLogger(__name__)

PIPELINE_PATH: Final = Path("config/pipeline/embedding.yaml")
TENSORRT_PATH: Final = Path("config/pipeline/arcface_tensorrt.yaml")

BackendType = Literal["insightface", "cudnn", "tensorrt", "openvino", "onnxruntime", "triton"]
BACKEND_TYPES: Final[tuple[BackendType, ...]] = get_args(BackendType)

Enabled = Literal["auto", "required", "off"]
"""What ``arcface_tensorrt.enabled`` says: "auto", true ("required") or false ("off")."""


def _backend(name: object) -> object:
    return "insightface" if name == "pytorch" else name


def _texts(value: object) -> object:
    """Texts with commas between them as a list."""
    return value.replace(" ", "").split(",") if isinstance(value, str) and value else value or ()


def _pairs(value: object) -> object:
    """``key=value`` texts with commas between them as a mapping."""
    return dict(pair.partition("=")[::2] for pair in value.split(",")) if isinstance(value, str) else value


def _family(text: str) -> str:
    if not text or family(text) != text:
        raise ValueError(
            "expected the name that models share, without _onnx, _trt and the like, for example arcface_r100"
        )
    return text


def _enabled(value: object) -> object:
    if value in ("auto", "required"):
        return value
    try:
        return "required" if TypeAdapter(bool).validate_python(value) else "off"
    except ValidationError:
        raise ValueError("expected auto, true or false") from None


_Text = Annotated[str, Field(min_length=1)]
_Texts = Annotated[tuple[_Text, ...], BeforeValidator(_texts)]
_Tolerance = Annotated[float, Field(gt=0, lt=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, protected_namespaces=()
    )


class EmbeddingSettings(_Section):
    """Which way to embed, and with which model.

    Attributes:
        backend: "insightface" (the reference, through the insightface package), "tensorrt" and "onnxruntime"
            (in this process), or "triton" (a server).
        device: Where to compute in this process.
        allow_cpu_fallback: Let ONNX Runtime on the CPU of this process stand in for what cannot be used.
        tensorrt_config: File of the settings of TensorRT.
        model: Name of the family of models, for example "arcface_r100" for arcface_r100_onnx and
            arcface_r100_trt.
        model_repository: The model repository, where it can be read from here.
        source: What the reference runs: an ONNX file, or the name of an InsightFace pack.
        providers: ONNX Runtime's execution providers in order of preference; empty leaves it to the device.
        candidates: Models on the server in order of preference, for example "arcface_r100_trt:3"; empty finds
            them.
        space: Which models to take: "float", which are comparable in every precision but int8, or "int8".
            Candidates are taken whatever they are.
        max_drift_cosine: Largest cosine distance of the golden crops' embeddings from the reference.
    """

    backend: Annotated[BackendType, BeforeValidator(_backend)] = "insightface"
    device: Annotated[Device, BeforeValidator(read_device)] = Device("cpu")
    allow_cpu_fallback: bool = True
    tensorrt_config: Path = TENSORRT_PATH
    model: Annotated[str, AfterValidator(_family)] = "arcface_r100"
    model_repository: Path = Path("model_repository")
    source: _Text = "buffalo_l"
    providers: _Texts = ()
    candidates: _Texts = ()
    space: SpaceName = "float"
    max_drift_cosine: _Tolerance = DEFAULT_MAX_DRIFT_COSINE


class TlsSettings(_Section):
    """Certificates; any of them turns TLS on."""

    enabled: bool = False
    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


class TritonSettings(_Section):
    """Which servers, within what limits, and how closely they are watched.

    Attributes:
        url: The servers, best first.
        spread: Whether the servers are all as good: each call goes to the one with the fewest under way.
        model: The one model that ``client`` calls; None means the ONNX model of ``embedding.model``.
        version: Its version; None means the newest one that the server has ready.
        request_timeout_s: Seconds that one request may take.
        max_in_flight: Requests that one call keeps with the server at a time.
        metadata: gRPC metadata of every request, for example the key of a restricted protocol; ``@FILE`` is
            read from that file.
        token_file: File of a bearer token, which is read for each request.
        max_request_mb: Largest request in MiB; None for no limit.
        shadow_rate: Share of the live crops that the sibling embeds as well, to compare.
        recheck_s: Seconds between two questions to the servers for their models.
        liveness_s: Seconds between two questions to a server in use whether it is alive.
        prove_again_s: Seconds between two golden checks of a model that passed.
        refused_again_s: Seconds between two golden checks of one that did not.
        tls: Certificates.
    """

    url: _Texts = ("localhost:8001",)
    spread: bool = False
    model: _Text | None = None
    version: int | None = None
    request_timeout_s: _Seconds = RequestLimits.request_timeout_s
    max_in_flight: Annotated[int, Field(ge=1)] = RequestLimits.max_in_flight
    metadata: Annotated[dict[str, str], BeforeValidator(_pairs), Field(repr=False)] = {}
    token_file: Path | None = None
    max_request_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    shadow_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    recheck_s: _Seconds = 2
    liveness_s: _Seconds = 1
    prove_again_s: _Seconds = 60
    refused_again_s: _Seconds = 30
    tls: TlsSettings = TlsSettings()

    @property
    def limits(self) -> RequestLimits:
        """Limits, certificates and metadata of requests; raises ConfigError for a bad file."""
        files = self.tls.model_dump(exclude={"enabled"})
        return RequestLimits(
            request_timeout_s=self.request_timeout_s,
            max_in_flight=self.max_in_flight,
            tls=Tls(**files) if self.tls.enabled or any(files.values()) else None,
            metadata=self.metadata,
            token_file=self.token_file,
            max_request_mb=self.max_request_mb,
        )

    def required_urls(self) -> tuple[str, ...]:
        """The servers' URLs; raises ConfigError if there is none."""
        if not self.url:
            raise ConfigError("triton.url is empty; expected one or more, for example localhost:8001.")
        return self.url

    def client(self, url: str | None = None) -> EmbeddingClient:
        """Make a client of a server, by default the first; raises ConfigError if there is none."""
        from .triton.client import EmbeddingClient  # brings gRPC, which backends in this process do without

        model = self.model or onnx_model(EmbeddingSettings().model)
        return EmbeddingClient(url or self.required_urls()[0], model, self.version, **vars(self.limits))


class TensorRtSettings(_Section):
    """How plans are made and kept, and whether they are used.

    Attributes:
        enabled: "auto": a plan is used if it is there and right; "required": nothing else is used; "off": no
            plan is made or used.
        precision: Of the plan: fp32, tf32, fp16, bf16, mixed or int8.
        max_batch_size: Largest batch.
        opt_batch_size: The batch that TensorRT tunes for; None means the largest.
        workspace_size_mb: Memory of one kernel, in MiB.
        hardware_compatible: Fit every GPU of the compute capability.
        small_batch_profile: Tune kernels for small batches as well: 1 to 4 crops, and the middle.
        instances: Copies that Triton runs side by side on each GPU; None means what the model has, or 2.
        engine_s3_bucket: Bucket to share plans through.
        max_drift_cosine: Largest cosine distance from the source's embeddings that the gate accepts.
    """

    enabled: Annotated[Enabled, BeforeValidator(_enabled)] = "auto"
    precision: _Text = "fp16"
    max_batch_size: int = 32
    opt_batch_size: int | None = None
    workspace_size_mb: int = 1024
    hardware_compatible: bool = True
    small_batch_profile: bool = True
    instances: int | None = None
    engine_s3_bucket: _Text | None = None
    max_drift_cosine: _Tolerance = DEFAULT_MAX_DRIFT_COSINE


class PipelineSettings(_Section):
    """Everything that a pipeline's embeddings depend on; see ``load_pipeline_settings``."""

    embedding: EmbeddingSettings = EmbeddingSettings()
    triton: TritonSettings = TritonSettings()
    tensorrt: TensorRtSettings = TensorRtSettings()


_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "embedding": EmbeddingSettings,
    "triton": TritonSettings,
    "triton.tls": TlsSettings,
    "tensorrt": TensorRtSettings,
}
_MOVED: Final = {
    "embedding.max_drift_cosine": "validation.max_drift_cosine",
    "tensorrt.max_drift_cosine": "validation.max_drift_cosine",
    "tensorrt.enabled": "arcface_tensorrt.enabled",
}
"""Fields whose key in the files is another one."""

_FIELDS: Final = tuple(
    f"{name}.{field}"
    for name, section in _SECTIONS.items()
    for field in section.model_fields
    if f"{name}.{field}" not in _SECTIONS
)
_TENSORRT: Final = tuple(field for field in _FIELDS if field.startswith("tensorrt."))
_PIPELINE: Final = tuple(field for field in _FIELDS if field not in _TENSORRT)

KEYS: Final = tuple(dict.fromkeys(_MOVED.get(field, field) for field in _FIELDS))
"""Every key of the two files."""

_KUBERNETES: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_[A-Z]+(_\w+)?)=|_PORT=\w+://")
"""Variables that pods find for each service, for example for one named arcface-triton."""


def variable(key: str) -> str:
    """The environment variable of a key; ``arcface_`` is not repeated."""
    return "ARCFACE_" + key.removeprefix("arcface_").upper().replace(".", "_")


def load_pipeline_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> PipelineSettings:
    """Read the settings, those of TensorRT too.

    Args:
        path: A YAML file; None takes ``config/pipeline/embedding.yaml`` if that exists.
        environment: Environment variables.
        arguments: Values by key that take precedence over all others; those that are None do not count.

    Raises:
        ConfigError: A file is missing or not YAML, a key is unknown, or a value cannot be used.
    """
    above = _above_files(arguments, environment, _FIELDS)
    layer = _from_file(path, PIPELINE_PATH, _PIPELINE) | above
    named = layer.get("embedding.tensorrt_config", TENSORRT_PATH)
    plans = _from_file(None if named == TENSORRT_PATH else named, TENSORRT_PATH, _TENSORRT)
    settings = _settings(plans | layer)
    triton = settings.triton
    _ = triton.limits  # certificates and metadata that cannot be used are an error now, not at the first call
    if triton.model is None:
        triton = triton.model_copy(update={"model": onnx_model(settings.embedding.model)})
    return settings.model_copy(update={"triton": triton})


def load_tensorrt_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    arguments: Mapping[str, object] | None = None,
) -> TensorRtSettings:
    """Read the settings of TensorRT alone; arguments and errors are those of ``load_pipeline_settings``."""
    above = _above_files(arguments, environment, _TENSORRT)
    return _settings(_from_file(path, TENSORRT_PATH, _TENSORRT) | above).tensorrt


_Layer = dict[str, Any]  # the values of a source, or of several, by field


def _values(key: str, given: object, by: str, fields: tuple[str, ...]) -> _Layer:
    """The fields that a key sets, with what its value means; ``by`` says what gave it, for the message."""
    layer = {}
    for field in fields:
        if _MOVED.get(field, field) == key:
            section, _, name = field.rpartition(".")
            try:
                layer[field] = getattr(_SECTIONS[section].model_validate({name: given}), name)
            except ValidationError as error:
                raise ConfigError(f"{by}{key} is {given!r}; {expectation(error.errors()[0])}.") from error
    return layer


def _above_files(
    arguments: Mapping[str, object] | None, environment: Mapping[str, str], fields: tuple[str, ...]
) -> _Layer:
    """The values of the environment, and of the arguments, which have precedence."""
    variables = {variable(key): key for key in KEYS}
    layer: _Layer = {}
    for name, text in environment.items():
        if not text or not name.startswith("ARCFACE_"):
            continue
        if name in variables:
            layer |= _values(variables[name], text, f"{name}: ", fields)
        elif name not in ("ARCFACE_CACHE_DIR", PUBLIC_KEY) and not _KUBERNETES.search(f"{name}={text}"):
            near = difflib.get_close_matches(name, variables, 1, 0.7)
            hint = f"did you mean {near[0]}?" if near else "there is no such setting."
            _log.warning("The environment variable %s is ignored; %s", name, hint)
    for key, value in (arguments or {}).items():
        if value is not None:
            layer |= _values(key, value, "", fields)
    return layer


def _from_file(path: Path | None, usual_path: Path, fields: tuple[str, ...]) -> _Layer:
    if path is None:
        if not usual_path.is_file():
            return {}
        path = usual_path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    layer: _Layer = {}
    keys = [_MOVED.get(field, field) for field in fields]
    for key, value in _flatten(content, keys, path):
        layer |= _values(key, value, f"{path}: ", fields)
    return layer


def _flatten(content: object, keys: list[str], path: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The keys and values of a file that are not null."""
    if content is None:
        return
    if not isinstance(content, dict):
        section = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{path} has {content!r} where {section} should hold keys and values.")
    for name, value in content.items():
        key = f"{prefix}{name}"
        if any(known.startswith(f"{key}.") for known in keys):
            yield from _flatten(value, keys, path, f"{key}.")
        elif key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(keys)}."
            raise ConfigError(f"{path} has the unknown key {key}; {hint}")
        elif value is not None:
            yield key, value


def _settings(layer: _Layer) -> PipelineSettings:
    nested: dict[str, Any] = {}
    for field, value in layer.items():
        *sections, name = field.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return PipelineSettings.model_validate(nested)
