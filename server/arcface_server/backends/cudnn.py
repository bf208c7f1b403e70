"""Models for cuDNN, in Triton's own Python backend.

The ``model.py`` in the folder of such a model's version imports ``TritonPythonModel`` from here, so that the
same repository serves in NVIDIA's container, with this project installed in it, and elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ConfigError, require
from arcface_client.models.manifest import MODEL_FILE
from arcface_client.runtimes.base import in_batches

from .config import read_instance_config
from .requests import respond


class TritonPythonModel:
    """One instance of a model, on one GPU."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; Triton's repository index shows an error as the reason."""
        config = read_instance_config(args)
        if config.device != "GPU":
            raise ConfigError(
                f"{args['model_name']} asks for KIND_{config.device}; cuDNN runs on a GPU. Set "
                "`kind: KIND_GPU` in its instance_group."
            )
        cudnn = require(
            "arcface_client.runtimes.cudnn.runtime",
            extra="cudnn",
            purpose=f"{args['model_name']} on this server",
        )
        self._runtime = cudnn.Cudnn(
            config.version_folder / MODEL_FILE,
            device=config.device_id,
            max_batch_size=config.max_batch_size,
        )

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Answer the requests that Triton has batched."""
        return respond(pb_utils, self._embed, requests)

    def finalize(self) -> None:
        """Free the model."""
        self._runtime.close()

    def _embed(self, batches: Sequence[Crops]) -> Embeddings:
        largest: int = self._runtime.max_batch_size
        if sum(map(len, batches)) <= largest:
            embeddings: Embeddings = self._runtime.embed_joined(batches)
            return embeddings
        # The GPU had no memory for as large a batch as the configuration says.
        return in_batches(self._runtime.embed, np.concatenate(batches), largest)
