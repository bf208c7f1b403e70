"""The whole job on Ray Data: crops are read and decoded in tasks, embedded in actors, and written as parts."""

from __future__ import annotations

import pickle
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..contract import CROP_BYTES
from ..errors import ArcFaceError, DeploymentError, InputError, ServerUnavailableError, require
from ..gallery import GalleryInfo, write_gallery
from ..models.golden import golden_crops
from .decode import Decoded, decode
from .ids import IdSet
from .ray_data import CROP, EmbedCrops

if TYPE_CHECKING:
    import pyarrow as pa

    from .source import Item, Place, Source

LOCAL: Final = "local"
AUTO: Final = "auto"

FILES: Final = 1024
"""Files of one task that reads: 38 MB of crops."""

BATCH: Final = 256
"""Crops of one call of the embedder."""

PART_ROWS: Final = 4096
"""Least number of rows of a part, but for the last one: what is lost when a job is killed."""

_REACH_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many actors embed, and what each of them takes.

    Attributes:
        least: How many there are from the beginning.
        most: How many there are when crops wait for them.
        gpus: GPUs of each; 0 for a server, and for a model on the CPU.
        cpus: Processors of each.
    """

    least: int = 1
    most: int = 1
    gpus: float = 0
    cpus: float = 1


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster; within a program that has connected already, use what it has.

    Args:
        address: "auto" for the cluster that this machine is in or RAY_ADDRESS names, "local" to start Ray
            here until the job ends, HOST:PORT, or ray://HOST:PORT.

    Yields:
        The module ``ray``.

    Raises:
        MissingExtraError: Ray is not installed.
        ServerUnavailableError: Nothing answers at the address.
        DeploymentError: The cluster has another version of Ray or Python.
    """
    ray = require("ray", extra="ray", purpose="Embedding on Ray")
    require("ray.data", extra="ray", purpose="Embedding on Ray")
    if ray.is_initialized():
        yield ray
        return
    _check_answers(address)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise DeploymentError(
                f"The cluster at {address} has another version: {text}. Install its version of ray here."
            ) from error
        raise ServerUnavailableError(f"No Ray cluster answered at {address}: {text}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself waits for half a minute, and then may end the process."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if match is None:
        if address in (LOCAL, AUTO):
            return
        raise InputError(f"The address of Ray is {address!r}; expected auto, local, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((match[1], int(match[2])), _REACH_S).close()
    except OSError as error:
        raise ServerUnavailableError(
            f"No Ray cluster answered at {address}: {error.strerror or error}. Start one with `ray start --head`, "
            "or give --ray local."
        ) from error
