"""Models for cuDNN, in Triton's own Python backend.

The ``model.py`` in the folder of such a model's version imports ``TritonPythonModel`` from here, so that the
same repository serves in NVIDIA's container, with this project installed in it, and elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils

from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import ArcFaceError, ConfigError, require
from arcface_client.models.manifest import MODEL_FILE
from arcface_client.runtimes.base import in_batches

from .config import read_instance_config
from .requests import crops_of, respond, split

_FEW: Final = 4
"""The most requests that are answered one by one: that takes twice as long as answering them together."""

_ANSWERERS: Final = 2


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
        self._answers = ThreadPoolExecutor(_ANSWERERS)

    def execute(
        self, requests: Sequence[pb_utils.InferenceRequest]
    ) -> list[pb_utils.InferenceResponse] | None:
        """Answer the requests that Triton has batched, or start to.

        A few large ones are answered by another thread, so that Triton hands over the next ones while the
        GPU computes.
        """
        batches = [crops_of(pb_utils, request) for request in requests]
        if len(requests) > _FEW or sum(map(len, batches)) > self._runtime.max_batch_size:
            return respond(pb_utils, self._embed, requests)
        try:
            wait = self._runtime.start(batches)
        except ArcFaceError:
            return respond(pb_utils, self._embed, requests)
        senders = [request.get_response_sender() for request in requests]
        self._answers.submit(self._answer, wait, senders, [len(batch) for batch in batches])
        return None

    def finalize(self) -> None:
        """Free the model."""
        self._answers.shutdown()
        self._runtime.close()

    def _answer(self, wait: Callable[[], Embeddings], senders: Sequence[Any], counts: Sequence[int]) -> None:
        try:
            responses = split(pb_utils, wait(), counts)
        except ArcFaceError as error:
            failed = pb_utils.TritonError(str(error))
            responses = [pb_utils.InferenceResponse(error=failed) for _ in senders]
        for sender, response in zip(senders, responses, strict=True):
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _embed(self, batches: Sequence[Crops]) -> Embeddings:
        largest: int = self._runtime.max_batch_size
        if sum(map(len, batches)) <= largest:
            embeddings: Embeddings = self._runtime.embed_joined(batches)
            return embeddings
        # The GPU had no memory for as large a batch as the configuration says.
        return in_batches(self._runtime.embed, np.concatenate(batches), largest)
