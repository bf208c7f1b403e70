"""A system that is measured, in a process of its own: two thread pools in one would disturb each other."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..backends.base import EmbeddingBackend
from ..backends.factory import make_backend
from ..backends.local import BATCH_SIZE, LocalModel
from ..backends.pooled import PooledBackend
from ..contract import Crops, Embeddings
from ..errors import ArcFaceError, ContractError, DeploymentError
from ..failover.discovery import Pin
from ..failover.replica import Origin
from ..models.embedding_space import EmbeddingSpace
from ..models.golden import golden_crops
from ..observability.diagnostics import Diagnostics, Served
from ..runtimes.base import CPU
from ..settings import BACKEND_TYPES, PipelineSettings
from .samples import generated_samples
from .systems import is_file, load_file

_CROPS: Final = 64  # different ones
_STOP_S: Final = 5.0
_BACKENDS: Final = (*BACKEND_TYPES, "pytorch")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a system did while it was its turn.

    Attributes:
        calls_s: Seconds of each call.
        wall_s: Seconds of all calls together.
        served: How the calls were served, each way once.
        host_mb: Largest resident memory of the process until now, in MiB.
    """

    calls_s: list[float]
    wall_s: float
    served: frozenset[Served]
    host_mb: float


class Worker:
    """Opens a system in a process of its own, and lets it embed.

    Args:
        name: A backend's type, for example "onnxruntime"; a model of the server, NAME or NAME:VERSION; or an
            ONNX file.
        settings: The settings of the backend and of the server.
    """

    def __init__(self, name: str, settings: PipelineSettings) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit gRPC's threads half
        self._name = name
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, settings), daemon=True)
        self._process.start()
        other.close()

    def open(self) -> tuple[Diagnostics, Embeddings]:
        """Wait until the system is ready.

        Returns:
            What it says of itself, and its embeddings of the golden crops, float32 [8, D].

        Raises:
            ArcFaceError: It cannot be opened.
        """
        try:
            return self._receive()  # type: ignore[no-any-return]
        except DeploymentError as error:
            if self._name in _BACKENDS or is_file(self._name) or ":" in self._name:
                raise
            raise DeploymentError(
                f"{error} {self._name} is not a backend ({', '.join(BACKEND_TYPES)}), so it was taken for a "
                "model of the server."
            ) from error

    def turn(self, batch_size: int, seconds: float, clients: int) -> Turn:
        """Let ``clients`` threads embed batches for about ``seconds``, at least one batch each.

        Raises:
            ArcFaceError: A call failed, or the process ended.
        """
        self._pipe.send((batch_size, seconds, clients))
        return self._receive()  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process, in the middle of a call too."""
        self._process.terminate()
        self._process.join(_STOP_S)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_STOP_S)
            raise DeploymentError(
                f"The process of {self._name} ended with exit code {self._process.exitcode}; -9 means that "
                "it was killed, as a system without free memory does."
            ) from error
        if isinstance(answer, str):
            raise DeploymentError(f"{self._name}: {answer}")
        return answer


def _serve(pipe: Connection, name: str, settings: PipelineSettings) -> None:
    """Run the worker's process until the pipe is closed; an error's text is an answer, too."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends this process
    try:
        with open_backend(name, settings) as backend:
            backend.ensure_ready()
            golden = backend.encode(golden_crops())
            pipe.send((backend.diagnostics(), golden))
            samples = generated_samples(_CROPS).crops
            while True:
                batch_size, seconds, clients = pipe.recv()
                crops = np.resize(samples, (batch_size, *samples.shape[1:]))  # repeated, if need be
                pipe.send(_turn(backend, crops, seconds, clients))
    except ArcFaceError as error:
        pipe.send(str(error))
    except EOFError:
        pass


def open_backend(name: str, settings: PipelineSettings) -> EmbeddingBackend:
    """Make the backend that a system's name means; see ``Worker``."""
    if is_file(name):
        return PooledBackend("onnxruntime", [Origin(name, lambda *_: _file(Path(name)))])
    if name in _BACKENDS:
        update: dict[str, Any] = {"backend": "insightface" if name == "pytorch" else name}
    else:
        update = {"backend": "triton", "candidates": (str(Pin.parse(name)),), "allow_cpu_fallback": False}
        tensorrt = settings.tensorrt.model_copy(update={"enabled": "auto"})  # it may be named all the same
        settings = settings.model_copy(update={"tensorrt": tensorrt})
    embedding = settings.embedding.model_copy(update=update)
    return make_backend(settings.model_copy(update={"embedding": embedding}))


def _file(path: Path) -> LocalModel:
    known = Diagnostics(
        backend="onnxruntime", model=path.stem, engine_path=str(path), provider=CPU, batch_size=BATCH_SIZE
    )
    try:
        runtime = load_file(path)
    except ContractError as error:
        raise ContractError(
            f"{error} To measure a source network, give insightface --source {path}."
        ) from error
    return LocalModel(runtime, known, EmbeddingSpace())


def _turn(backend: EmbeddingBackend, crops: Crops, seconds: float, clients: int) -> Turn:
    backend.encode(crops)  # wakes threads and caches after the turns of others
    started = time.perf_counter()

    def calls() -> tuple[list[float], set[Served]]:
        own_s, ways = [], set()
        begin = time.perf_counter()
        while True:
            _, served = backend.encode(crops, return_source=True)
            end = time.perf_counter()
            own_s.append(end - begin)
            ways.add(served)
            if end - started >= seconds:
                return own_s, ways
            begin = end

    done = [calls()] if clients == 1 else _at_once(calls, clients)
    wall_s = time.perf_counter() - started
    return Turn(
        calls_s=[second for own_s, _ in done for second in own_s],
        wall_s=wall_s,
        served=frozenset().union(*(ways for _, ways in done)),
        host_mb=_host_mb(),
    )


def _at_once(
    calls: Callable[[], tuple[list[float], set[Served]]], clients: int
) -> list[tuple[list[float], set[Served]]]:
    with ThreadPoolExecutor(clients) as pool:
        return [one.result() for one in [pool.submit(calls) for _ in range(clients)]]


def _host_mb() -> float:
    """Largest resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure begins with that of the process which started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
