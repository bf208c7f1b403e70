"""Models in this process: where they come from, and how they embed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..contract import INPUT_NAME, Embeddings, check_shape
from ..errors import DeploymentError, ModelLoadingError, require
from ..failover.replica import Origin
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import GoldenReference, golden_crops
from ..models.naming import onnx_model, plan_model, sibling_model
from ..models.repository import LocalMade, LocalModels, LocalOnnx
from ..observability.diagnostics import HERE, Diagnostics, Source
from ..runtimes.base import COREML, CPU, CUDA, Device, Runtime, provider_options
from ..triton.embed_request import Deadline, EmbedRequest

BATCH_SIZE: Final = 32
"""Crops of one run: enough to keep every core at work, few enough to keep to a deadline."""

_log = logging.getLogger(__name__)


class LocalModel:
    """A model that is loaded into this process; see ``failover.golden_check.Model``. Thread-safe.

    ``known`` is what diagnostics say of it: backend, model, version and so on. ``reference`` is what the
    golden crops' embeddings must be; None when unknown.
    """

    def __init__(
        self,
        runtime: Runtime,
        known: Diagnostics,
        space: EmbeddingSpace,
        reference: GoldenReference | None = None,
    ) -> None:
        self.source = Source(known.backend, str(known.model), known.version, HERE, 0)
        self.space = space
        self.reference = reference
        self._runtime = runtime
        self._known = known
        self._batch_size = known.batch_size or BATCH_SIZE
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = False
        self._crop_s = 0.0
        self._dim: int | None = None

    def embed(self, request: EmbedRequest) -> None:
        """Embed what a request misses, batch by batch.

        Batches become smaller towards the request's deadline: at the speed of the last run, it is overrun
        by no more than one crop takes. A run that has begun cannot be ended.

        Raises:
            TransientError: The time is up, or the model was freed.
            DeploymentError: The model does not run, or its output is not a batch of embeddings.
            NotFiniteError: The embeddings of some crops are NaN; all others are in the request.
        """
        with self._in_use():
            if self._dim is not None:
                request.set_width(self._dim)
            for part in request.parts(self._batch_size):
                start = part.start
                while start < part.stop:
                    size = min(self._affordable(request.deadline.remaining_s()), part.stop - start)
                    rows = slice(start, start + size)
                    started = time.perf_counter()
                    embeddings = self._runtime.embed(request.crops[rows])
                    self._crop_s = (time.perf_counter() - started) / size
                    check_shape(self.source.model, embeddings.shape, size, self._dim)
                    self._dim = embeddings.shape[1]
                    request.fill(rows, embeddings)
                    start = rows.stop
            request.check_finite(self.source.model)

    def embed_golden(self, deadline: Deadline) -> Embeddings:
        """Embed the golden crops."""
        request = EmbedRequest(golden_crops(), deadline)
        self.embed(request)
        return request.embeddings

    def embed_golden_by_sibling(self, deadline: Deadline) -> Embeddings | None:
        """A plan in this process is checked against its manifest only."""
        return None

    def diagnostics(self) -> Diagnostics:
        """What it is."""
        return replace(self._known, embedding_dim=self._dim)

    def close(self) -> None:
        """Free it, or let the last call that uses it do so."""
        with self._lock:
            is_free, self._closed = not (self._closed or self._calls), True
        if is_free:
            self._free()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ModelLoadingError(f"{self.source.model} was freed a moment ago.")
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                is_last = self._closed and not self._calls
            if is_last:
                self._free()

    def _affordable(self, remaining_s: float) -> int:
        """The largest batch, or as many crops as there is time for, at least one."""
        crop_s = self._crop_s
        if self._batch_size * crop_s <= remaining_s:
            return self._batch_size
        return max(1, int(remaining_s / crop_s))

    def _free(self) -> None:
        try:
            self._runtime.close()
        except DeploymentError as error:  # for example of a GPU that has failed
            _log.warning("%s was not freed: %s", self.source.model, error)


def onnx_origin(models: LocalModels, name: str, provider: str, gpu: int = 0) -> Origin:
    """``{name}_onnx`` of a model repository on one of ONNX Runtime's execution providers."""

    def load(space: EmbeddingSpace | None, _: Deadline) -> LocalModel:
        require("onnxruntime", extra="onnxruntime", purpose="Embedding in this process")
        from ..runtimes.onnxruntime import OnnxRuntime, open_on

        found = models.onnx(name, space=space)
        session = open_on(
            provider,
            found.path,
            options=provider_options(provider, gpu),
            try_out=lambda session: session.run(None, {INPUT_NAME: np.asarray(golden_crops()[:1])}),
        )
        runtime = OnnxRuntime(found.path, session=session)
        return _loaded(
            "onnxruntime", found, runtime, precision="fp32", provider=provider, batch_size=BATCH_SIZE
        )

    return Origin(f"{onnx_model(name)} on {provider}", load)


def openvino_origin(models: LocalModels, name: str) -> Origin:
    """The newest ``{name}_openvino`` of a model repository on this machine's CPU."""

    def open_(path: Path) -> tuple[Runtime, dict[str, Any]]:
        require("arcface_client.runtimes.openvino", extra="openvino", purpose="OpenVINO in this process")
        from ..runtimes.openvino import OpenVino

        runtime = OpenVino(path)
        return runtime, {"precision": runtime.precision, "batch_size": BATCH_SIZE}

    return _sibling_origin(models, name, "openvino", "this CPU", open_)


def cudnn_origin(models: LocalModels, name: str, gpu: int) -> Origin:
    """The newest ``{name}_cudnn`` of a model repository on a GPU of this machine."""

    def open_(path: Path) -> tuple[Runtime, dict[str, Any]]:
        require("arcface_client.runtimes.cudnn.runtime", extra="cudnn", purpose="cuDNN in this process")
        from ..runtimes.cudnn.runtime import Cudnn

        runtime = Cudnn(path, device=gpu)
        return runtime, {
            "precision": runtime.precision,
            "batch_size": runtime.max_batch_size,
            "vram_mb": round(runtime.vram_mb, 1) if runtime.vram_mb > 0 else None,
        }

    return _sibling_origin(models, name, "cudnn", f"cuda:{gpu}", open_)


def _sibling_origin(
    models: LocalModels,
    name: str,
    runtime: str,
    where: str,
    open_: Callable[[Path], tuple[Runtime, dict[str, Any]]],
) -> Origin:
    """The newest sibling for a runtime; ``open_`` loads its file, and says what diagnostics show of it."""
    model = sibling_model(name, runtime)

    def load(space: EmbeddingSpace | None, _: Deadline) -> LocalModel:
        found = models.sibling(model, space)
        loaded, facts = open_(found.path)
        if found.manifest.quantised:  # a runtime does not know what of it was left wide on purpose
            facts["precision"] = found.manifest.precision
        return _loaded(runtime, found, loaded, **facts)

    return Origin(f"{model} on {where}", load)


def plan_origin(models: LocalModels, name: str, gpu: int) -> Origin:
    """The newest plan of ``{name}_trt`` for a GPU of this machine."""

    def load(space: EmbeddingSpace | None, _: Deadline) -> LocalModel:
        for module in ("tensorrt", "arcface_client.runtimes.tensorrt"):
            require(module, extra="tensorrt", purpose="TensorRT in this process")
        import tensorrt

        from ..runtimes.cuda import compute_capability, device_count
        from ..runtimes.tensorrt import TensorRt

        count = device_count()
        if gpu >= count:
            raise DeploymentError(
                f"There is no GPU {gpu}: CUDA sees {count}. Name another device, or use backend onnxruntime."
            )
        sm = compute_capability(gpu).replace(".", "")
        plan = models.plan(name, sm, space)
        plan.manifest.check_loadable(plan.path, tensorrt.__version__)
        runtime = TensorRt(plan.path, sha256=plan.manifest.plan_sha256, device=gpu)
        return _loaded(
            "tensorrt",
            plan,
            runtime,
            precision=plan.manifest.identity.precision,
            sm=sm,
            batch_size=runtime.max_batch_size,
            vram_mb=round(runtime.vram_mb, 1) if runtime.vram_mb > 0 else None,
        )

    return Origin(f"{plan_model(name)} on cuda:{gpu}", load)


def _loaded(backend: str, found: LocalOnnx | LocalMade[Any], runtime: Runtime, **facts: Any) -> LocalModel:
    """A version of a model repository that is loaded; ``facts`` are what else diagnostics say of it."""
    known = Diagnostics(
        backend=backend, model=found.model, version=found.version, engine_path=str(found.path), **facts
    )
    return LocalModel(runtime, known, found.space, found.reference)


def switched_off(name: str) -> Origin:
    """Stands for the plan where the settings switch TensorRT off."""

    def load(*_: object) -> LocalModel:
        raise DeploymentError("TensorRT is switched off: arcface_tensorrt.enabled is false; set it to auto.")

    return Origin(plan_model(name), load)


def provider_order(device: Device, providers: Sequence[str], *, allow_cpu_fallback: bool) -> list[str]:
    """ONNX Runtime's execution providers that may be used, in order of preference.

    ``providers`` go before ``device``, whose "auto" is CUDA or CoreML where it is there, or else the CPU.
    """
    if providers:
        first, *others = dict.fromkeys([*providers, CPU])
        return [first, *(name for name in others if name != CPU or allow_cpu_fallback)]
    if device.kind == "cuda":
        return [CUDA, CPU] if allow_cpu_fallback else [CUDA]
    if device.kind == "cpu":
        return [CPU]
    available = require("onnxruntime", extra="onnxruntime", purpose="This backend").get_available_providers()
    found = [provider for provider in (CUDA, COREML) if provider in available]
    return [*found, CPU] if allow_cpu_fallback or not found else found
