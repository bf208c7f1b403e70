"""TensorRT in this process: the repository's newest plan for the GPU at hand."""

from __future__ import annotations

from ..errors import DeploymentError, MissingExtraError
from ..models.embedding_space import EmbeddingSpace
from ..models.naming import plan_model
from ..models.repository import LocalModels
from .local_model import LocalCandidate, LocalModel


def plan_candidate(models: LocalModels, name: str, gpu: int) -> LocalCandidate:
    """The newest plan of ``{name}_trt`` for a GPU."""
    return LocalCandidate(
        f"{plan_model(name)} on cuda:{gpu}", lambda identity: load_plan(models, name, gpu, identity)
    )


def switched_off(name: str) -> LocalCandidate:
    """What stands for the plan where the settings keep TensorRT out."""

    def refuse(_: EmbeddingSpace | None) -> LocalModel:
        raise DeploymentError("TensorRT is switched off: arcface_tensorrt.enabled is false; set it to auto.")

    return LocalCandidate(plan_model(name), refuse)


def load_plan(models: LocalModels, name: str, gpu: int, identity: EmbeddingSpace | None = None) -> LocalModel:
    """Load the newest plan for a GPU, of an identity or (None) that of the newest ONNX model.

    Raises:
        MissingExtraError: TensorRT, or a package that it needs, is not installed.
        CudaError: There is no such GPU, or its driver is too old.
        DeploymentError: There is no plan for it, the plan is another than the one recorded, of another
            TensorRT, or cannot be loaded.
    """
    try:
        import tensorrt

        from ..runtimes.cuda import compute_capability, device_count
        from ..runtimes.tensorrt import TensorRt
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"TensorRT in this process needs the package {error.name}, which is not installed: "
            "pip install 'arcface-triton[tensorrt]', and TensorRT itself in the very version that built the "
            "plans, or run in NVIDIA's tensorrt image."
        ) from error
    except (ImportError, OSError) as error:  # one of its libraries
        raise MissingExtraError(f"TensorRT is installed, but cannot be loaded: {error}") from error
    count = device_count()
    if gpu >= count:
        raise DeploymentError(
            f"There is no GPU {gpu}: CUDA sees {count}. Name another device, or use backend onnxruntime."
        )
    sm = compute_capability(gpu).replace(".", "")
    plan = models.plan(name, sm, identity)
    plan.manifest.check_loadable(plan.path, tensorrt.__version__)
    runtime = TensorRt(plan.path, sha256=plan.manifest.plan_sha256, device=gpu)
    return LocalModel(
        runtime=runtime,
        backend="tensorrt",
        model=plan.model,
        version=plan.version,
        path=plan.path,
        batch_size=runtime.max_batch_size,
        identity=plan.onnx.embedding_space(plan.manifest.precision_class),
        golden=plan.onnx.golden_embeddings,
        precision=plan.manifest.identity.precision,
        sm=sm,
        vram_mb=round(runtime.vram_mb, 1) if runtime.vram_mb > 0 else None,
    )
