"""A model in this process, before and after it is loaded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..contract import Embeddings, check_finite, check_shape
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import drift_error, golden_crops, largest_drift
from ..runtimes.base import Runtime
from ..triton.deadline import Deadline
from ..triton.embed_request import EmbedRequest

_RUNS: Final = 4


class Pace:
    """How long a model takes for a crop, by the slowest of its last runs."""

    def __init__(self) -> None:
        self._crop_s: deque[float] = deque([0.0], maxlen=_RUNS)

    def note(self, crops: int, seconds: float) -> None:
        """Learn from a run."""
        self._crop_s.append(seconds / crops)

    def batch_size(self, largest: int, remaining_s: float) -> int:
        """The largest batch, or as many crops as there is time for, at least one."""
        crop_s = max(self._crop_s)
        return largest if largest * crop_s <= remaining_s else max(1, int(remaining_s / crop_s))


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalModel:
    """A model that is loaded.

    Attributes:
        runtime: Runs it.
        backend: "tensorrt", "onnxruntime" or "insightface".
        model: Its name.
        version: Its version; None when it has none.
        path: Its file.
        batch_size: Largest batch of one run.
        identity: Which gallery its embeddings belong to.
        golden: What the golden crops' embeddings have to be, float32 [8, 512]; None when nobody knows.
        precision: As "fp16".
        sm: Architecture of the GPU, as "90".
        provider: What ONNX Runtime really runs on.
        vram_mb: See ``Diagnostics``.
        pace: How fast it is.
    """

    runtime: Runtime
    backend: str
    model: str
    version: int | None
    path: Path
    batch_size: int
    identity: EmbeddingSpace
    golden: Embeddings | None
    precision: str
    sm: str | None = None
    provider: str | None = None
    vram_mb: float | None = None
    pace: Pace = field(default_factory=Pace)

    def run(self, job: EmbedRequest) -> None:
        """Embed what a job misses, batch by batch; what is done before an error stays done.

        Batches become smaller towards the job's deadline. At the pace of the last runs it is overrun by no
        more than one crop takes; a run that has begun cannot be ended.

        Raises:
            TransientError: The job's time is over.
            DeploymentError: The model does not run, or gives what are no embeddings.
        """
        for part in job.parts(self.batch_size):
            start = part.start
            while start < part.stop:
                at_most = self.pace.batch_size(self.batch_size, job.deadline.remaining_s())
                size = min(at_most, part.stop - start)
                rows = slice(start, start + size)
                started = time.perf_counter()
                embeddings = self.runtime.embed(job.crops[rows])
                self.pace.note(size, time.perf_counter() - started)
                check_shape(self.model, embeddings.shape, size)
                check_finite(self.model, embeddings)
                job.fill(rows, embeddings)
                start = rows.stop

    def examine(self, max_drift_cosine: float) -> float | None:
        """Embed the golden crops.

        Returns:
            The largest drift from what they have to be; None when nobody knows that.

        Raises:
            DriftError: It is above ``max_drift_cosine``.
            DeploymentError: The model does not run.
        """
        job = EmbedRequest(golden_crops(), Deadline(None))
        self.run(job)
        if self.golden is None:
            return None
        drift = largest_drift(job.embeddings, self.golden)
        whose = f"{self.path} has to be built again: its golden embeddings"
        error = drift_error(drift, max_drift_cosine, whose, "those of its source model")
        if error is not None:
            raise error
        return drift


@dataclass(frozen=True)
class LocalCandidate:
    """A model that can be loaded, or cannot.

    Attributes:
        name: What a person calls it, as "arcface_r100_onnx on CPUExecutionProvider".
        load: Loads the newest version that does not conflict with an identity (None: the newest of all);
            raises a DeploymentError when something has to be mended first.
    """

    name: str
    load: Callable[[EmbeddingSpace | None], LocalModel]
