"""Real servers with sibling models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from arcface_server import LocalTriton
from siblings import write_siblings
from tiny import write_tiny_repository

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalTriton, LocalTriton]]:
    """Two servers with tiny_trt and tiny_onnx, two crops a batch, whose models can be unloaded."""
    repository = write_siblings(tmp_path_factory.mktemp("siblings"), max_batch_size=2, work=1)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(LocalTriton(repository, flags=EXPLICIT, stop_timeout_s=1)) for _ in range(2)
        )
        yield first, second


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """A server with tiny_trt and tiny_onnx, and models whose weights are wrong by more and less."""
    repository = write_siblings(tmp_path_factory.mktemp("crowd"))
    write_tiny_repository(repository, "wrong_trt", skew=1.0)
    write_tiny_repository(repository, "slight_trt", skew=0.063)
    write_tiny_repository(repository, "near_trt", skew=0.02)
    write_tiny_repository(repository, "full_trt", max_batch_size=1, work=3, queue=1)
    with LocalTriton(repository, stop_timeout_s=1) as server:
        yield server
