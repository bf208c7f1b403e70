"""Load an ONNX model where its configuration says: on a GPU or on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from arcface_client.contract import CROP_SHAPE, INPUT_NAME
from arcface_client.errors import ConfigError, DeploymentError, InputError
from arcface_client.models.manifest import MODEL_FILE
from arcface_client.runtimes.base import CUDA, provider_options
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_on, open_session

from .config import InstanceConfig


def load_model(model: str, config: InstanceConfig, logger: Any) -> OnnxRuntime:
    """Load the ONNX model that an instance runs, and log where it computes.

    With KIND_AUTO, Triton makes instances on the GPUs if there are any. If ONNX Runtime cannot use them,
    these compute on the CPU, and a warning says why.

    Raises:
        ConfigError: KIND_GPU is asked for, and ONNX Runtime cannot use the GPU.
        DeploymentError: The file is missing or ONNX Runtime cannot load it.
        ContractError: The model has other tensors.
    """
    path = config.version_folder / (config.filename or MODEL_FILE)
    if config.device == "GPU":
        gpu = config.device_id
        try:
            session = open_on(CUDA, path, options=provider_options(CUDA, gpu), try_out=_run_one_crop)
        except (DeploymentError, InputError) as error:
            if config.gpu_is_required:
                raise ConfigError(
                    f"{model} asks for KIND_GPU, and ONNX Runtime cannot use GPU {gpu}: {error} With "
                    "`kind: KIND_AUTO` in its instance_group, the CPU would serve."
                ) from error
            logger.log_warn(f"{model}: ONNX Runtime computes on the CPU, not on GPU {gpu}: {error}")
        else:
            logger.log_info(f"{model}: ONNX Runtime computes on GPU {gpu}")
            return OnnxRuntime(path, session)
    else:
        logger.log_info(f"{model}: ONNX Runtime computes on the CPU")
    session = open_session(
        path,
        intra_op_threads=config.integer("intra_op_thread_count", default=0),
        inter_op_threads=config.integer("inter_op_thread_count", default=0),
        entries={name: value for name, value in config.parameters.items() if name.startswith("session.")},
    )
    return OnnxRuntime(path, session)


def _run_one_crop(session: Any) -> None:
    session.run(None, {INPUT_NAME: np.zeros((1, *CROP_SHAPE), np.uint8)})
