"""What ``arcface_builder`` leaves in a model repository beside the models, as far as serving needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ..contract import Embeddings
from ..errors import DeploymentError, ManifestError
from .embedding_space import PRECISIONS, EmbeddingIdentity, PrecisionClass, describe_preprocessing
from .golden import from_text, golden_sha256

MODEL_FILE: Final = "model.onnx"
"""What Triton's onnxruntime backend looks for in a version's folder."""

_ENDING: Final = "manifest.json"

SCHEMA_VERSION: Final = 1
"""Of the records' fields, an ONNX model's and a plan's."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxRecord:
    """What is recorded of a version of an ONNX model.

    Attributes:
        sha256: SHA-256 of the served file.
        source_sha256: SHA-256 of the source model's file.
        preprocessing: What the graph does to the pixels, see ``identity``.
        golden: The source model's embeddings of the golden crops, float32 [8, 512]; None when they are of
            other crops than this package's.
    """

    sha256: str
    source_sha256: str
    preprocessing: str
    golden: Embeddings | None

    def identity(self, precision_class: PrecisionClass | None = "float") -> EmbeddingIdentity:
        """Which gallery the embeddings belong to, of this model or of a plan of another class."""
        return EmbeddingIdentity(
            source_sha256=self.source_sha256,
            preprocessing=self.preprocessing,
            precision_class=precision_class,
        )


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What is recorded of a TensorRT plan.

    Attributes:
        sha256: SHA-256 of the plan.
        onnx_sha256: SHA-256 of the ONNX model that it was built from.
        tensorrt_version: The TensorRT that built it, and that alone can load it.
        precision: Its precision, as "fp16".
        sm: The GPU architecture that it was built for, as "90".
        max_batch_size: Its largest batch.
    """

    sha256: str
    onnx_sha256: str
    tensorrt_version: str
    precision: str
    sm: str
    max_batch_size: int

    def check_loadable(self, plan: Path, installed_version: str) -> None:
        """Refuse a plan by another TensorRT before that one sees it.

        Raises:
            DeploymentError: The versions differ.
        """
        if self.tensorrt_version != installed_version:
            raise DeploymentError(
                f"{plan} was built by TensorRT {self.tensorrt_version}, and TensorRT {installed_version} is "
                "installed: a plan fits one build. Run `arcface-builder compile` with that one."
            )

    @property
    def precision_class(self) -> PrecisionClass:
        """Its class of precision."""
        return PRECISIONS[self.precision]


def manifest_path(root: Path, model: str, version: int, sm: str | None = None) -> Path:
    """Where a version's record is, or that of its plan for an SM: in the root, which Triton passes over."""
    plan = "" if sm is None else f"-sm{sm}"
    return root / f"{model}-{version}{plan}.{_ENDING}"


def plan_manifest_paths(root: Path, model: str, version: int) -> list[Path]:
    """The records of all plans of a version."""
    return sorted(root.glob(f"{model}-{version}-sm*.{_ENDING}"))


def read_onnx_record(path: Path) -> OnnxRecord:
    """Read the record of a version of an ONNX model.

    Raises:
        ManifestError: It is missing, or says what cannot be.
    """
    content = _read(path)
    return OnnxRecord(
        sha256=_sha256(path, content, "model_file", "sha256"),
        source_sha256=_sha256(path, content, "source", "sha256"),
        preprocessing=describe_preprocessing(
            _triple(path, content, "preprocessing", "mean"),
            _triple(path, content, "preprocessing", "std"),
            _field(path, content, str, "preprocessing", "channels"),
        ),
        golden=_golden(path, content),
    )


def read_plan_record(path: Path) -> PlanRecord:
    """Read the record of a plan.

    Raises:
        ManifestError: It is missing, or says what cannot be.
    """
    content = _read(path)
    precision = _field(path, content, str, "identity", "precision")
    if precision not in PRECISIONS:
        raise ManifestError(
            f"{path}: identity.precision is {precision!r:.80}; expected one of {', '.join(PRECISIONS)}."
        )
    return PlanRecord(
        sha256=_sha256(path, content, "plan_sha256"),
        onnx_sha256=_sha256(path, content, "identity", "onnx_sha256"),
        tensorrt_version=_field(path, content, str, "identity", "tensorrt_version"),
        precision=precision,
        sm=_field(path, content, str, "identity", "sm"),
        max_batch_size=_field(path, content, int, "identity", "max_batch_size"),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(
            f"Cannot read the manifest {path}: {error.strerror}. Build the model with `arcface-builder`."
        ) from error
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's decoding errors, or [[[[...
        raise ManifestError(f"{path} is no JSON ({error}); build the model again.") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path} is {content!r:.80}; expected an object. Build the model again.")
    schema = content.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema_version {schema!r:.80}; expected {SCHEMA_VERSION}. "
            "Another version of arcface-triton wrote it."
        )
    return content


def _golden(path: Path, content: Mapping[str, Any]) -> Embeddings | None:
    if _sha256(path, content, "golden", "crops_sha256") != golden_sha256():
        return None
    try:
        return from_text(_field(path, content, str, "golden", "embeddings"))
    except ValueError as error:
        raise ManifestError(f"{path}: golden.embeddings holds {error}. Build the model again.") from error


def _field(path: Path, content: Any, kind: type[T], *keys: str) -> T:
    value = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if type(value) is not kind:
        expected = {str: "a text", int: "a whole number", list: "a list"}[kind]
        raise ManifestError(
            f"{path}: {'.'.join(keys)} is {value!r:.80}; expected {expected}. Build the model again."
        )
    return value


def _sha256(path: Path, content: Mapping[str, Any], *keys: str) -> str:
    text = _field(path, content, str, *keys)
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise ManifestError(f"{path}: {'.'.join(keys)} is {text!r:.80}; expected 64 hexadecimal digits.")
    return text


def _triple(path: Path, content: Mapping[str, Any], *keys: str) -> tuple[float, ...]:
    values: list[Any] = _field(path, content, list, *keys)
    if len(values) != 3 or not all(type(value) in (int, float) for value in values):
        raise ManifestError(f"{path}: {'.'.join(keys)} is {values!r:.80}; expected three numbers.")
    return tuple(float(value) for value in values)
