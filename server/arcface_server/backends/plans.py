"""Choose a model's plan for a GPU and load it, if it is the one that was published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arcface_client.errors import ConfigError, DeploymentError, MissingExtraError

from .config import InstanceConfig

if TYPE_CHECKING:
    from arcface_client.runtimes.tensorrt import TensorRt


@dataclass(frozen=True)
class PublishedPlan:
    """What a plan's manifest says of it.

    Attributes:
        sha256: SHA-256 of its bytes.
        tensorrt_version: The TensorRT that built it.
    """

    sha256: str
    tensorrt_version: str

    def check_loadable(self, plan: Path, installed_version: str) -> None:
        """Refuse a plan by another TensorRT before that one sees it.

        Raises:
            DeploymentError: The versions differ.
        """
        if self.tensorrt_version != installed_version:
            raise DeploymentError(
                f"{plan} was built by TensorRT {self.tensorrt_version}, and this server has TensorRT "
                f"{installed_version}: a plan fits one build. Run `arcface-builder compile` with that one."
            )


def load_plan(model: str, config: InstanceConfig) -> TensorRt:
    """Load the plan that an instance is to run.

    Raises:
        ConfigError: The instance is not on a GPU.
        MissingExtraError: TensorRT or CUDA's Python package is not installed.
        DeploymentError: There is no plan for this GPU, it is not the one that was published, or TensorRT
            cannot load it.
    """
    if config.device != "GPU":
        raise ConfigError(
            f"{model} asks for KIND_{config.device}; a TensorRT plan runs on a GPU. Set `kind: KIND_GPU` in "
            "its instance_group."
        )
    try:
        import tensorrt

        from arcface_client.runtimes.cuda import compute_capability
        from arcface_client.runtimes.tensorrt import TensorRt
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{model} needs the package {error.name}, which is not installed beside this server: "
            "pip install 'arcface-triton[tensorrt]'. The ONNX sibling serves without it."
        ) from error
    path = plan_for(model, config, compute_capability(config.device_id))
    published = published_plan(path, manifest_of(path))
    published.check_loadable(path, tensorrt.__version__)
    return TensorRt(path, sha256=published.sha256, device=config.device_id)


def plan_for(model: str, config: InstanceConfig, compute_capability: str) -> Path:
    """The plan that the configuration names for a compute capability ("8.6").

    Raises:
        DeploymentError: It names none, or the file is missing.
    """
    filename = config.cc_filenames.get(compute_capability)
    if filename is None:
        present = ", ".join(sorted(config.cc_filenames)) or "no GPU at all"
        raise DeploymentError(
            f"{model} has plans for compute capability {present}; this GPU has {compute_capability}. "
            "Run `arcface-builder compile` on such a GPU."
        )
    path = config.version_folder / filename
    if not path.is_file():
        raise DeploymentError(
            f"{model} names {path} for compute capability {compute_capability}; it is missing."
        )
    return path


def manifest_of(plan: Path) -> Path:
    """Where the builder wrote what it knows of a plan: beside the models, so that Triton does not read it."""
    version, model = plan.parent, plan.parent.parent
    return model.parent / f"{model.name}-{version.name}-{plan.stem.rpartition('-')[2]}.manifest.json"


def published_plan(plan: Path, manifest: Path) -> PublishedPlan:
    """Read what the manifest says of a plan.

    Raises:
        DeploymentError: Nothing is known of the plan.
    """
    try:
        content = json.loads(manifest.read_text())
        return PublishedPlan(str(content["plan_sha256"]), str(content["identity"]["tensorrt_version"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DeploymentError(
            f"Nothing is known of {plan}, so it is not run: {manifest} cannot be read ({error!r}). "
            "Publish plans with `arcface-builder compile`."
        ) from error
