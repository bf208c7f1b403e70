"""Choose a model's plan for a GPU and load it, if it is the one that was published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arcface_client.errors import ConfigError, DeploymentError, MissingExtraError
from arcface_client.models.manifest import PlanManifest, manifest_path

from .config import InstanceConfig

if TYPE_CHECKING:
    from arcface_client.runtimes.tensorrt import TensorRt


def load_plan(model: str, config: InstanceConfig) -> TensorRt:
    """Load the plan that an instance is to run.

    Raises:
        ConfigError: The instance is not on a GPU.
        MissingExtraError: TensorRT or CUDA's Python package is not installed, or cannot be loaded.
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
    except (ImportError, OSError) as error:  # one of TensorRT's libraries
        raise MissingExtraError(
            f"{model} needs TensorRT, which is installed beside this server, but cannot be loaded: {error}. "
            "The ONNX sibling serves without it."
        ) from error
    path = plan_for(model, config, compute_capability(config.device_id))
    record = record_of(path)
    record.check_loadable(path, tensorrt.__version__)
    return TensorRt(path, sha256=record.plan_sha256, device=config.device_id)


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


def record_of(plan: Path) -> PlanManifest:
    """What the builder recorded of a plan: beside the models, so that Triton does not read it.

    Raises:
        ManifestError: Nothing is known of the plan.
    """
    version, model = plan.parent, plan.parent.parent
    sm = plan.stem.rpartition("-sm")[2]
    return PlanManifest.read(manifest_path(model.parent, model.name, int(version.name), sm))
