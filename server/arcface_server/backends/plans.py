"""Find a model's plan for a GPU, and load it if it is the published one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arcface_client.errors import ConfigError, DeploymentError, require
from arcface_client.models.manifest import manifest_path
from arcface_client.models.plan_manifest import PlanManifest

from .config import InstanceConfig

if TYPE_CHECKING:
    from arcface_client.runtimes.tensorrt import TensorRt


def load_plan(model: str, config: InstanceConfig) -> TensorRt:
    """Load the plan that an instance runs.

    Raises:
        ConfigError: The instance is not on a GPU.
        MissingExtraError: TensorRT or CUDA's Python package is not installed, or cannot be loaded.
        DeploymentError: This GPU has no plan, it is not the published one, or TensorRT cannot load it.
    """
    if config.device != "GPU":
        raise ConfigError(
            f"{model} asks for KIND_{config.device}; a TensorRT plan runs on a GPU. Set `kind: KIND_GPU` in "
            "its instance_group."
        )
    tensorrt, _ = (
        require(module, extra="tensorrt", purpose=f"{model} on this server")
        for module in ("tensorrt", "cuda.bindings")
    )
    from arcface_client.runtimes.cuda import compute_capability
    from arcface_client.runtimes.tensorrt import TensorRt

    path = plan_for(model, config, compute_capability(config.device_id))
    manifest = plan_manifest(path)
    manifest.check_loadable(path, tensorrt.__version__)
    return TensorRt(path, sha256=manifest.plan_sha256, device=config.device_id)


def plan_for(model: str, config: InstanceConfig, compute_capability: str) -> Path:
    """The plan that the configuration names for a compute capability ("8.6").

    Raises:
        DeploymentError: It names none.
    """
    filename = config.cc_filenames.get(compute_capability)
    if filename is None:
        present = ", ".join(sorted(config.cc_filenames)) or "no GPU"
        raise DeploymentError(
            f"{model} has plans for compute capability {present}; this GPU has {compute_capability}. "
            "Run `arcface-builder compile` on such a GPU."
        )
    return config.version_folder / filename


def plan_manifest(plan: Path) -> PlanManifest:
    """The manifest of a published plan, in the repository's root.

    Raises:
        ManifestError: There is no readable manifest.
    """
    version, model = plan.parent, plan.parent.parent
    sm = plan.stem.rpartition("-sm")[2]
    return PlanManifest.read(manifest_path(model.parent, model.name, int(version.name), sm))
