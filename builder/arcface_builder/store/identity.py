"""What makes a plan the plan that is wanted: everything that goes into its build."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Final, TypeAlias

from arcface_client.models.embedding_space import PRECISIONS

from ..errors import OptionError
from ..repository.names import check_name

Setting: TypeAlias = str | int | float | bool | None

SMALL_BATCH_PROFILE: Final = "small_batch_profile"
"""The setting of a plan that has a second optimisation profile, for few crops."""

CALIBRATION: Final = "calibration"
"""The setting that tells the crops which int8's ranges are of."""

GPU_MODEL: Final = "gpu"
"""The setting of a plan that is for one model of GPU, not for its whole architecture."""

PLATFORM: Final = "platform"
"""The setting of the operating system and processor that a plan is for, as ``linux-x86_64``."""

TYPED_BY: Final = "onnxruntime"
"""The setting of the ONNX Runtime that wrote a precision into the graph."""

_ROOT: Final = "engines"
_DIGEST_LENGTH: Final = 12
_VERSION: Final = r"\d+(\.\d+){2,3}((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?"  # as PEP 440 has it

KEY_PARTS: Final = ("model", "precision", "sm", "tensorrt_version")
"""What of an identity can be read from its key."""

_KEY: Final = re.compile(
    rf"{_ROOT}/trt-(?P<tensorrt_version>[^/]+)/[^/]+/[^/]+/[^/]+/"
    r"(?P<model>[^/]+)-(?P<precision>[^/-]+)-sm(?P<sm>\d+)\.plan"
)


@dataclass(frozen=True, kw_only=True)
class PlanIdentity:
    """What a plan is built from and for; two builds with equal identities are interchangeable.

    Attributes:
        model: The model's name without a backend's ending, e.g. ``arcface_r100``.
        onnx_sha256: SHA-256 of the ONNX file that the repository serves, before its precision is changed.
        tensorrt_version: TensorRT's full version, e.g. ``10.16.1.11``: a plan fits one build of it.
        sm: The GPU architecture, e.g. ``86``; ``sm_of`` makes it from a compute capability.
        precision: What the plan is named after, one of ``PRECISIONS``.
        min_batch_size: Smallest batch of the optimisation profile.
        opt_batch_size: The batch it is tuned for.
        max_batch_size: Largest batch.
        settings: Everything else that changes the plan: platform, workspace, hardware compatibility, the
            GPU's model where there is none, calibration, what types the graph.

    Raises:
        OptionError: A value cannot be that of a plan.
    """

    model: str
    onnx_sha256: str
    tensorrt_version: str
    sm: str
    precision: str
    min_batch_size: int
    opt_batch_size: int
    max_batch_size: int
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.model)
        _expect(r"[0-9a-f]{64}", "ONNX SHA-256", self.onnx_sha256, "64 lower-case hexadecimal digits")
        _expect(_VERSION, "TensorRT version", self.tensorrt_version, "a full one, as 10.16.1.11")
        check_sm(self.sm)
        if self.precision not in PRECISIONS:
            raise OptionError(f"Precision {self.precision!r} is unknown; expected {', '.join(PRECISIONS)}.")
        batches = (self.min_batch_size, self.opt_batch_size, self.max_batch_size)
        if not 1 <= batches[0] <= batches[1] <= batches[2]:
            raise OptionError(f"Batch sizes {batches} cannot be a profile; expected 1 <= min <= opt <= max.")

    @property
    def profiles(self) -> int:
        """How many optimisation profiles it has."""
        return 1 + bool(self.settings.get(SMALL_BATCH_PROFILE))

    @property
    def platform(self) -> str:
        """The operating system and processor that it is for."""
        return str(self.settings.get(PLATFORM))

    @property
    def kind(self) -> str:
        """What a server must be to load it, for messages: its TensorRT, and its platform."""
        return f"TensorRT {self.tensorrt_version} for {self.platform}"

    @property
    def filename(self) -> str:
        """Name of the plan's file, with what a person needs: ``arcface_r100-fp16-sm86.plan``."""
        return f"{self.model}-{self.precision}-sm{self.sm}.plan"

    @property
    def prefix(self) -> str:
        """The rest of the identity, readable, and the digest of all of it so that no two are alike."""
        return "/".join(
            (
                f"trt-{self.tensorrt_version}",
                f"onnx-{self.onnx_sha256[:_DIGEST_LENGTH]}",
                f"batch-{self.min_batch_size}-{self.opt_batch_size}-{self.max_batch_size}",
                self.digest,
            )
        )

    @property
    def key(self) -> str:
        """Where a store keeps the plan, relative to its root."""
        return f"{_ROOT}/{self.prefix}/{self.filename}"

    @property
    def digest(self) -> str:
        """A short name for exactly this identity."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_LENGTH]

    @property
    def compute_capability(self) -> str:
        """The architecture as Triton's ``cc_model_filenames`` names it, e.g. ``8.6``."""
        return f"{self.sm[:-1]}.{self.sm[-1]}"

    def differences(self, other: PlanIdentity) -> list[str]:
        """What to change in another identity to come to this one, a phrase for each field."""
        pairs = [
            (item.name, getattr(self, item.name), getattr(other, item.name))
            for item in fields(self)
            if item.name != "settings"
        ]
        for name in sorted(self.settings.keys() | other.settings.keys()):
            pairs.append((name, self.settings.get(name), other.settings.get(name)))
        return [f"{name} {theirs}, not {ours}" for name, ours, theirs in pairs if ours != theirs]


def release_of(version: str) -> tuple[int, ...]:
    """The numbers that a TensorRT version begins with: ``10.0.0b6`` has 10, 0 and 0."""
    numbers = re.split(r"\.?[a-z]", version, maxsplit=1)[0]
    return tuple(int(number) for number in numbers.split("."))


def key_parts(key: str) -> dict[str, str]:
    """Read ``KEY_PARTS`` from a plan's key; nothing from what is none."""
    match = _KEY.fullmatch(key)
    return match.groupdict() if match else {}


def check_sm(sm: str) -> str:
    """Return the SM of file names as it is.

    Raises:
        OptionError: It is none.
    """
    return _expect(r"[1-9]\d{1,2}", "SM", sm, "digits alone, as 86")


def sm_of(compute_capability: str) -> str:
    """Turn a compute capability into the SM of file names: ``8.6`` into ``86``.

    Raises:
        OptionError: It is none.
    """
    _expect(r"[1-9]\d?\.\d", "Compute capability", compute_capability, "major.minor, as 8.6")
    return compute_capability.replace(".", "")


def _expect(pattern: str, name: str, value: str, expected: str) -> str:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise OptionError(f"{name} {value!r} cannot be that of a plan; expected {expected}.")
    return value
