"""What a user sets, read once: arguments, then the environment, then the YAML files, then the defaults.

A setting's key is its path in a file, for example ``triton.url`` in ``config/pipeline/embedding.yaml``. Its
environment variable is ``ARCFACE_`` and the key in capitals, ``ARCFACE_TRITON_URL``; an empty one is ignored.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import ConfigError
from .models.naming import family, onnx_model
from .runtimes.base import Device, read_device
from .triton.limits import DEFAULT_MAX_DRIFT_COSINE, DEFAULT_MAX_IN_FLIGHT, DEFAULT_REQUEST_TIMEOUT_S
from .triton.tls import Tls

if TYPE_CHECKING:
    from .triton.client import EmbeddingClient

_log = logging.getLogger(__name__)

PIPELINE_PATH: Final = Path("config/pipeline/embedding.yaml")
TENSORRT_PATH: Final = Path("config/pipeline/arcface_tensorrt.yaml")

BackendType = Literal["insightface", "tensorrt", "onnxruntime", "triton"]
BACKEND_TYPES: Final[tuple[BackendType, ...]] = ("insightface", "tensorrt", "onnxruntime", "triton")

Enabled = Literal["auto", "required", "off"]
"""What ``arcface_tensorrt.enabled`` says: "auto", true ("required") or false ("off")."""


def _backend(name: object) -> object:
    return "insightface" if name == "pytorch" else name


def _texts(value: object) -> object:
    """Texts with commas between them as a list."""
    return value.replace(" ", "").split(",") if isinstance(value, str) and value else value or ()


def _family(text: str) -> str:
    if not text or family(text) != text:
        raise ValueError(
            "expected the name that models share, without _onnx or _trt, for example arcface_r100"
        )
    return text


def _enabled(value: object) -> object:
    word = str(value).lower()
    if word in ("auto", "required"):
        return word
    if word in ("true", "1", "yes", "on"):
        return "required"
    if word in ("false", "0", "no", "off"):
        return "off"
    raise ValueError("expected auto, true or false")


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
        max_drift_cosine: Largest cosine distance of the golden crops' embeddings from the reference.
    """

    backend: Annotated[BackendType, BeforeValidator(_backend)] = "insightface"
    device: Annotated[Device, BeforeValidator(read_device)] = Device("cpu")
    allow_cpu_fallback: bool = True
    tensorrt_config: Path = TENSORRT_PATH
    model: Annotated[str, BeforeValidator(_family)] = "arcface_r100"
    model_repository: Path = Path("model_repository")
    source: _Text = "buffalo_l"
    providers: _Texts = ()
    candidates: _Texts = ()
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
        model: The one model that ``client`` calls; None is the ONNX model of ``embedding.model``.
        version: Its version; None is the newest one that the server has ready.
        request_timeout_s: Seconds that one request may take.
        max_in_flight: Requests that one call keeps with the server at a time.
        shadow_rate: Share of the live crops that the sibling embeds as well, to compare.
        recheck_s: Seconds between two looks at what the servers list.
        liveness_s: Seconds between two questions to a server in use whether it is alive.
        prove_again_s: Seconds between two golden checks of a model that passed.
        refused_again_s: Seconds between two golden checks of one that did not.
        tls: Certificates.
    """

    url: _Texts = ("localhost:8001",)
    model: _Text | None = None
    version: int | None = None
    request_timeout_s: _Seconds = DEFAULT_REQUEST_TIMEOUT_S
    max_in_flight: Annotated[int, Field(ge=1)] = DEFAULT_MAX_IN_FLIGHT
    shadow_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    recheck_s: _Seconds = 2
    liveness_s: _Seconds = 1
    prove_again_s: _Seconds = 300
    refused_again_s: _Seconds = 30
    tls: TlsSettings = TlsSettings()

    @property
    def certificates(self) -> Tls | None:
        """The certificates, None without TLS; raises ConfigError for a file that cannot be used."""
        files = self.tls.model_dump(exclude={"enabled"})
        return Tls(**files) if self.tls.enabled or any(files.values()) else None

    def required_urls(self) -> tuple[str, ...]:
        """The servers' URLs; raises ConfigError if there is none."""
        if not self.url:
            raise ConfigError("triton.url is empty; expected one or more, for example localhost:8001.")
        return self.url

    def client(self, url: str | None = None) -> EmbeddingClient:
        """Make a client of a server, by default the first; raises ConfigError if there is none."""
        from .triton.client import EmbeddingClient  # brings gRPC, which backends in this process do without

        return EmbeddingClient(
            url or self.required_urls()[0],
            self.model or onnx_model(EmbeddingSettings().model),
            self.version,
            request_timeout_s=self.request_timeout_s,
            max_in_flight=self.max_in_flight,
            tls=self.certificates,
        )


class TensorRtSettings(_Section):
    """How plans are made and kept, and whether they are used.

    Attributes:
        enabled: "auto": a plan is used if it is there and right; "required": nothing else is used; "off": no
            plan is made or used.
        precision: Of the plan: fp32, tf32, fp16, bf16 or int8.
        max_batch_size: Largest batch.
        opt_batch_size: The batch that TensorRT tunes for; None is the largest.
        workspace_size_mb: Memory of one kernel, in MiB.
        hardware_compatible: Fit every GPU of the compute capability.
        small_batch_profile: Tune kernels for 1 to 4 crops as well.
        instances: Copies that Triton runs side by side on each GPU; None is what the model has, or 2.
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


class PipelineSettings(BaseSettings):
    """Everything that a pipeline's embeddings depend on; see ``load_pipeline_settings``."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    embedding: EmbeddingSettings = EmbeddingSettings()
    triton: TritonSettings = TritonSettings()
    tensorrt: TensorRtSettings = TensorRtSettings()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: Any, *others: Any, **more: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the layers that were read; settings that are constructed read nothing."""
        layers = init_settings.init_kwargs.get("layers")
        if layers is None:
            return (init_settings,)
        return tuple(InitSettingsSource(settings_cls, layer) for layer in layers)


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if field.annotation is TlsSettings:
            yield from _keys(TlsSettings, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


_MOVED: Final = {
    "embedding.max_drift_cosine": "validation.max_drift_cosine",
    "tensorrt.max_drift_cosine": "validation.max_drift_cosine",
    "tensorrt.enabled": "arcface_tensorrt.enabled",
}
"""Fields whose key in the files is another one."""

_PIPELINE: Final = (*_keys(EmbeddingSettings, "embedding."), *_keys(TritonSettings, "triton."))
_TENSORRT: Final = tuple(_keys(TensorRtSettings, "tensorrt."))

KEYS: Final = tuple(dict.fromkeys(_MOVED.get(field, field) for field in (*_PIPELINE, *_TENSORRT)))
"""Every key of the two files."""

_WITHOUT_EFFECT: Final = "triton.shared_memory"
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
    layers = [*_above_files(arguments, environment), _from_file(path, PIPELINE_PATH, _PIPELINE)]
    given = (
        layer["embedding.tensorrt_config"].value for layer in layers if "embedding.tensorrt_config" in layer
    )
    tensorrt = Path(str(next(given, TENSORRT_PATH)))
    layers.append(_from_file(None if tensorrt == TENSORRT_PATH else tensorrt, TENSORRT_PATH, _TENSORRT))
    settings = _validated(layers)
    triton = settings.triton
    _ = triton.certificates  # certificates that cannot be used are an error now, not at the first call
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
    layers = [
        {field: given for field, given in layer.items() if field in _TENSORRT}
        for layer in _above_files(arguments, environment)
    ]
    return _validated([*layers, _from_file(path, TENSORRT_PATH, _TENSORRT)]).tensorrt


@dataclass(frozen=True)
class _Given:
    """A value as it was given, and by what: "FILE: ", "VARIABLE: ", or "" for an argument."""

    value: object
    by: str


_Layer = dict[str, _Given]
"""The values of one source, by field."""


def _fields(key: str, fields: Iterable[str] = (*_PIPELINE, *_TENSORRT)) -> list[str]:
    """The fields that a key sets."""
    return [field for field in fields if _MOVED.get(field, field) == key]


def _above_files(arguments: Mapping[str, object] | None, environment: Mapping[str, str]) -> list[_Layer]:
    """The layers of the arguments and of the environment."""
    variables = {variable(key): key for key in KEYS}
    layers: list[_Layer] = [{}, {}]
    for key, value in (arguments or {}).items():
        if value is not None:
            layers[0] |= dict.fromkeys(_fields(key), _Given(value, ""))
    for name, text in environment.items():
        if not text or not name.startswith("ARCFACE_"):
            continue
        if name in variables:
            layers[1] |= dict.fromkeys(_fields(variables[name]), _Given(text, f"{name}: "))
        elif name == variable(_WITHOUT_EFFECT):
            _warn_without_effect(name)
        elif name != "ARCFACE_CACHE_DIR" and not _KUBERNETES.search(f"{name}={text}"):
            _log.warning("The environment variable %s is ignored: there is no such setting", name)
    return layers


def _from_file(path: Path | None, usual_path: Path, fields: tuple[str, ...]) -> _Layer:
    if path is None:
        if not usual_path.is_file():
            return {}
        path = usual_path
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    layer: _Layer = {}
    keys = [_MOVED.get(field, field) for field in fields]
    for key, value in _flatten(content, keys, path):
        layer |= dict.fromkeys(_fields(key, fields), _Given(value, f"{path}: "))
    return layer


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that comes twice; YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        texts = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if texts.count(key.value) > 1:
                problem = f"the key {key.value!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def _flatten(content: object, keys: list[str], path: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The keys and values of a file that are not null."""
    if content is None:
        return
    if not isinstance(content, dict):
        section = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{path} has {content!r} where {section} should hold keys and values.")
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key == _WITHOUT_EFFECT:
            _warn_without_effect(f"{path}: {key}")
        elif any(known.startswith(f"{key}.") for known in keys):
            yield from _flatten(value, keys, path, f"{key}.")
        elif key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(keys)}."
            raise ConfigError(f"{path} has the unknown key {key}; {hint}")
        elif value is not None:
            yield key, value


def _warn_without_effect(name: str) -> None:
    _log.warning("%s has no effect any more: crops go by gRPC alone; remove it", name)


def _validated(layers: list[_Layer]) -> PipelineSettings:
    try:
        return PipelineSettings.model_validate({"layers": [_nested(layer) for layer in layers]})
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"]]
        fields = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        given, field = next((layer[field], field) for field in fields for layer in layers if field in layer)
        expected = re.sub("^(Value error, .*?expected|Input should be) ", "", first["msg"]).rstrip(".")
        key = _MOVED.get(field, field)
        raise ConfigError(f"{given.by}{key} is {given.value!r}; expected {expected}.") from error


def _nested(layer: _Layer) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for field, given in layer.items():
        *sections, name = field.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = given.value
    return nested
