"""A plan and its manifest, wherever they are kept, and the words that keys are made of."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.errors import ManifestError
from arcface_client.models.files import sha256_of
from arcface_client.models.plan_manifest import PlanManifest

from ..errors import OptionError, PlanDamagedError

GPU: Final = "gpu"
"""The setting of a plan that is for one model of GPU, not for its whole architecture."""

MANIFEST_ENDING: Final = ".json"
"""What a manifest's name has after its plan's."""

_PATH: Final = re.compile(
    r"engines/trt-(?P<tensorrt_version>[^/]+)/.+/(?P<model>[^/]+)-(?P<precision>[^/-]+)-sm(?P<sm>\d+)\.plan"
)


@dataclass(frozen=True)
class StoredPlan:
    """A plan on this machine.

    Attributes:
        path: The plan's file; its SHA-256 was compared with the manifest's just now.
        manifest: What the plan is.
    """

    path: Path
    manifest: PlanManifest


@dataclass(frozen=True)
class Entry:
    """What a store has in one place.

    Attributes:
        path: The plan's path below the store's root.
        manifest: Its manifest; None if that cannot be used.
        problem: Why it cannot.
    """

    path: str
    manifest: PlanManifest | None
    problem: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """What the path says: model, precision, sm, tensorrt_version."""
        match = _PATH.fullmatch(self.path)
        return match.groupdict() if match else {}

    def usable_manifest(self) -> PlanManifest:
        """The manifest.

        Raises:
            PlanDamagedError: It cannot be used.
        """
        if self.manifest is None:
            raise PlanDamagedError(self.problem)
        return self.manifest


def read_manifest(content: bytes, *, path: str, place: str) -> Entry:
    """Read the manifest of the plan at a path below a store's root."""
    where = f"The manifest of {path} in the {place}"
    try:
        manifest = PlanManifest.parse(content, where)
    except ManifestError as error:
        return Entry(path, None, str(error))
    if manifest.identity.key != path:
        return Entry(path, None, f"{where} belongs to another plan, {manifest.identity.key}.")
    return Entry(path, manifest)


def check_plan(plan: Path, manifest: PlanManifest, *, where: str) -> None:
    """Check that a plan's bytes are those that its manifest describes.

    Raises:
        PlanDamagedError: They are not.
    """
    if (found := sha256_of(plan)) != manifest.plan_sha256:
        raise PlanDamagedError(
            f"{where} has SHA-256 {found[:12]}...; its manifest says {manifest.plan_sha256[:12]}..."
        )


def release_of(version: str) -> tuple[int, ...]:
    """The numbers that a TensorRT version begins with: ``10.0.0b6`` has 10, 0 and 0."""
    numbers = re.split(r"\.?[a-z]", version, maxsplit=1)[0]
    return tuple(int(number) for number in numbers.split("."))


def sm_of(architecture: str) -> str:
    """Turn a compute capability into the SM of file names, ``8.6`` into ``86``; an SM stays as it is.

    Raises:
        OptionError: It is neither.
    """
    if not re.fullmatch(r"[1-9]\d?\.\d|[1-9]\d{1,2}", architecture, re.ASCII):
        raise OptionError(f"{architecture!r} is not an architecture; expected for example 8.6 or 86.")
    return architecture.replace(".", "")


def this_platform() -> str:
    """The operating system and processor of this machine, for example ``linux-x86_64``; a plan fits no other.

    https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html
    """
    return f"{sys.platform}-{platform.machine()}"
