"""A job on Ray: tasks read and decode, actors embed, and this process writes the gallery."""

from __future__ import annotations

import logging
import pickle
import re
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..backends.base import EmbeddingBackend
from ..contract import CROP_BYTES
from ..errors import ArcFaceError, DeploymentError, InputError, ServerUnavailableError, require
from ..gallery import GalleryInfo, vectors
from ..models.embedding_space import EmbeddingSpace
from .decode import decode
from .ids import IdSet
from .ray_data import CROP, EmbedCrops
from .rows import Rows, describe
from .source import Place, Source
from .stream import Observe, RowStream

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

LOCAL: Final = "local"
AUTO: Final = "auto"

_FILES: Final = 512
"""Image files that a task reads: 19 MB of crops, small enough for every machine to have work."""

_READ_BYTES: Final = 4 * _FILES * CROP_BYTES
"""Memory that such a task takes."""

_BATCH: Final = 256
"""Crops of one call of an embedder."""

_REACH_S: Final = 10.0

Open = Callable[[], EmbeddingBackend]
"""Makes an embedder, on the machine where it is called."""


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many actors embed, and what each of them takes.

    Attributes:
        least: How many there are at first.
        most: How many there are as long as crops wait for them.
        gpus: GPUs of each; 0 for those that call a server.
    """

    least: int = 1
    most: int = 1
    gpus: float = 0.0


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster; a program that is connected already keeps its own.

    Args:
        address: "auto" for the cluster that RAY_ADDRESS names or this machine belongs to, "local" to start
            Ray on this machine until the job ends, or HOST:PORT.

    Yields:
        The module ``ray``.

    Raises:
        InputError: The address is none.
        MissingExtraError: Ray is not installed.
        ServerUnavailableError: No cluster answers at the address.
        DeploymentError: The cluster has another version of Ray or of Python.
    """
    ray = require("ray", extra="ray", purpose="Embedding on Ray")
    require("ray.data", extra="ray", purpose="Embedding on Ray")
    if ray.is_initialized():
        yield ray
        return
    _check_answers(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has one of its own, which ends the process
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise DeploymentError(
                f"Install the versions of the Ray cluster at {address} here: {text}"
            ) from error
        if address == AUTO:
            text = "none runs on this machine. Give --ray HOST:PORT, or --ray local to start one"
        raise ServerUnavailableError(f"No Ray cluster answers at {address}: {text}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask before Ray does, which waits for half a minute and then may end the process."""
    if address in (LOCAL, AUTO):
        return
    match = re.fullmatch(r"([^/]+):(\d+)", address)
    if match is None:
        raise InputError(f"The address of Ray is {address!r}; expected auto, local or HOST:PORT.")
    try:
        socket.create_connection((match[1], int(match[2])), _REACH_S).close()
    except OSError as error:
        raise ServerUnavailableError(
            f"No Ray cluster answers at {address}: {error.strerror or error}. Start one with "
            "`ray start --head`, or give --ray local."
        ) from error


def describe_there(ray: Any, open_embedder: Open, actors: Actors, command: str) -> GalleryInfo:
    """What a gallery says of itself by an embedder of a machine that has what an actor takes.

    Raises:
        ArcFaceError: The embedder cannot serve.
        DeploymentError: The machine cannot run it, for example because this package is not installed there.
    """
    if actors.gpus > ray.cluster_resources().get("GPU", 0):
        _log.warning("The Ray cluster has no GPU for an actor now; the job waits until it has one")
    remote = ray.remote(num_cpus=1, num_gpus=actors.gpus)(_describe)
    with _plain_errors(ray):
        info: GalleryInfo = ray.get(remote.remote(open_embedder, command))
    return info


def _describe(open_embedder: Open, command: str) -> GalleryInfo:
    with open_embedder() as backend:
        backend.ensure_ready()
        return describe(backend, command)


class RayStream(RowStream):
    """Embeds what a source has on a Ray cluster, in any order.

    Ray starts tasks and actors anew that end with their machine, and holds back what is read while the
    embedders are busy.

    Args:
        ray: The module, connected to the cluster.
        source: Where the crops are, for every machine of the cluster.
        open_embedder: Makes an actor's embedder; it is pickled.
        space: The embedding space that all actors must have.
        actors: How many actors there are.
        resize: Scale images of another size instead of refusing them.
        observe: Is told how far it is.
    """

    def __init__(
        self,
        ray: Any,
        source: Source,
        open_embedder: Open,
        space: EmbeddingSpace,
        actors: Actors,
        *,
        resize: bool,
        observe: Observe,
    ) -> None:
        super().__init__(source, resize, observe)
        self._ray, self._open, self._space, self._actors = ray, open_embedder, space, actors

    def rows(self, known: IdSet) -> Generator[Rows, None, None]:
        """Yield rows; of crops with one id, the first that arrives."""
        self._begin_count()
        self.counts = replace(self.counts, kept=len(known))
        with _plain_errors(self._ray):
            for table in self._embedded(known).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                ids = table.column("id").to_pylist()
                is_new = self._seen.add(ids)
                if not is_new.all():
                    again = int((~is_new).sum())
                    self.counts = replace(self.counts, duplicates=self.counts.duplicates + again)
                    table = table.filter(is_new)
                if len(table):
                    rows = _rows(table)
                    self._note(rows)
                    yield rows

    def _embedded(self, known: IdSet) -> Any:
        data, actors = self._ray.data, self._actors
        data.DataContext.get_current().enable_progress_bars = False  # `observe` shows one
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        shards = [{"shard": pickle.dumps(shard)} for shard in self.source.shards(_FILES)]
        read = data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            _read,
            fn_args=(self._ray.put(known), self.resize),
            batch_size=1,
            batch_format="pyarrow",
            memory=_READ_BYTES,  # also keeps Ray from reading in the actors
        )
        return read.map_batches(
            _Actor,
            fn_constructor_args=(self._open, self._space),
            batch_size=_BATCH,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=data.ActorPoolStrategy(min_size=min(actors.least, len(shards)), max_size=actors.most),
            num_cpus=1,
            num_gpus=actors.gpus,
        )


class _Actor(EmbedCrops):
    def __init__(self, open_embedder: Open, space: EmbeddingSpace) -> None:
        self._begin(open_embedder(), space)


def _read(table: pa.Table, known: Any, resize: bool) -> Iterator[pa.Table]:
    """Read and decode a shard, without the ids that are known."""
    import pyarrow as pa
    import ray

    known_ids: IdSet = ray.get(known) if isinstance(known, ray.ObjectRef) else known
    (shard,) = table.column("shard").to_pylist()
    place: Place = pickle.loads(shard)
    items = place.items()
    while some := list(islice(items, _BATCH)):
        is_known = known_ids.contain([item.id for item in some])
        decoded = decode([item for item, skip in zip(some, is_known, strict=True) if not skip], resize=resize)
        crops = np.zeros((len(decoded.ids), CROP_BYTES), np.uint8)
        crops[[error is None for error in decoded.errors]] = decoded.crops.reshape(-1, CROP_BYTES)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(CROP_BYTES), len(crops), [None, pa.py_buffer(crops)]
        )
        errors = pa.array(decoded.errors, pa.string())
        yield pa.table({"id": pa.array(decoded.ids, pa.string()), CROP: column, "error": errors})


def _rows(table: pa.Table) -> Rows:
    columns = [table.column(name).to_pylist() for name in ("id", "source", "error")]
    embeddings = np.concatenate([vectors(chunk) for chunk in table.column("embedding").chunks])
    return Rows(columns[0], embeddings, columns[1], columns[2])


@contextmanager
def _plain_errors(ray: Any) -> Iterator[None]:
    """Raise what a task or actor raised, and one line for what Ray itself says."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and (
            not isinstance(cause, ArcFaceError) or isinstance(cause, ray.exceptions.RayError)
        ):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        is_missing = "ModuleNotFoundError" in lines[-1]
        hint = ". Install arcface-triton[cli,bulk,ray] on every machine of the cluster" if is_missing else ""
        raise DeploymentError(f"Ray could not go on: {lines[-1]}{hint}") from error
