"""Regions of shared memory that are lost, or overtaken, while a server opens them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from arcface_client.contract import Crops
from arcface_client.errors import DeadlineExceededError
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.region import FOLDER
from arcface_server import LocalTriton
from support import children
from support.fake_triton import FakeTriton, served
from support.sharing import known_regions, sharing

pytestmark = pytest.mark.faults

INTERRUPTED = """
import signal, sys, time
import numpy as np
from arcface_client import EmbeddingClient
from arcface_client.triton.channel import Connection

connection = Connection(sys.argv[1], retries=False, shared_memory=True)
client = EmbeddingClient(sys.argv[1], "tiny_onnx", connection=connection)
random = np.random.default_rng(0)
crops = random.integers(0, 256, (150, 112, 112, 3), np.uint8)
expected = client.encode(crops)

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
interrupted = 0
until = time.monotonic() + 5
while time.monotonic() < until:
    count = int(random.integers(1, 150))
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.05))
    try:
        embeddings = client.encode(crops[:count])
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert np.allclose(embeddings, expected[:count], atol=1e-6)
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted > 5
memory = connection.shared_memory
# A call that gRPC was just about to begin is never ended, and has its region for as long.
print(len(memory._opening), len(memory._lent) < 5)
started = time.monotonic()
connection.close()
print(time.monotonic() - started < 5)
"""


def test_ctrl_c_in_calls_loses_no_region_and_the_connection_still_ends(triton: LocalTriton) -> None:
    assert children.run(INTERRUPTED, triton.grpc_url) == "0 True\nTrue\n"


LOST = """
import gc, signal, sys
import numpy as np
from arcface_client import EmbeddingClient
from arcface_client.triton.channel import Connection
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.region import Region
from arcface_client.triton.request import Request

def lose(thing):
    cycle = [thing]
    cycle.append(cycle)

make = Region.__init__

def collect_and_make(*arguments):
    gc.collect()
    make(*arguments)

gc.disable()
signal.alarm(20)
Region.__init__ = collect_and_make
connection = Connection(sys.argv[1], retries=False, shared_memory=True)
client = EmbeddingClient(sys.argv[1], "tiny_onnx", connection=connection)
crops = np.zeros((64, 112, 112, 3), np.uint8)
answer = client.encode(crops[:2])
memory = connection.shared_memory

lose(Request(crops, Deadline(None), None, memory, memory.lend(2, Deadline(1.0))))
np.testing.assert_allclose(client.encode(crops[:16])[:2], answer, atol=1e-6)

stream = client.stream(crops)
next(stream)
lose(stream)
del stream
np.testing.assert_allclose(client.encode(crops[:8])[:2], answer, atol=1e-6)
print(connection.transport)
connection.close()
"""


def test_the_garbage_collector_may_find_a_lost_request_while_a_region_is_made(triton: LocalTriton) -> None:
    assert children.run(LOST, triton.grpc_url) == "system shared memory\n"


def test_ctrl_c_when_the_server_has_just_opened_a_region_leaves_it_none(
    triton: LocalTriton, crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known_regions(triton)
    with sharing(triton.grpc_url) as (client, connection):
        client.encode(crops[:1])
        register = connection.triton.register_system_shared_memory

        def interrupted(*arguments: Any, **named: Any) -> None:
            register(*arguments, **named)
            raise KeyboardInterrupt

        monkeypatch.setattr(connection.triton, "register_system_shared_memory", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.encode(crops[:16])
        assert len(known_regions(triton) - before) == 2
        monkeypatch.undo()
        client.encode(crops[:8])
        assert len(known_regions(triton) - before) == 2, "one is left, another is opened"
    assert known_regions(triton) == before


def test_who_opens_a_region_stays_its_owner_while_another_thread_finds_that_it_does_not_work(
    triton: LocalTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sharing(triton.grpc_url) as (_, connection):
        memory = connection.shared_memory
        assert memory is not None
        register = connection.triton.register_system_shared_memory

        def overtaken(*arguments: Any, **named: Any) -> None:
            register(*arguments, **named)
            memory.suspend("another thread found no room")

        monkeypatch.setattr(connection.triton, "register_system_shared_memory", overtaken)
        assert memory.lend(1, Deadline(1.0)) is None  # since none may be lent that was known before
        (name,) = known_regions(triton)
        assert (FOLDER / f"{name.rpartition('-')[0]}.lock").exists()
    assert name not in known_regions(triton)


class SlowControl(FakeTriton):
    """Takes its time to answer questions about shared memory."""

    metadata_s, register_s = 0.8, 3.0

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        time.sleep(self.metadata_s)
        return service_pb2.ServerMetadataResponse(version="2.60.0", extensions=["system_shared_memory"])

    def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        return service_pb2.SystemSharedMemoryStatusResponse()  # asked where a client of this port was killed

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        time.sleep(self.register_s)
        return service_pb2.SystemSharedMemoryRegisterResponse()


def test_a_call_does_not_outlast_its_time_while_a_region_is_opened(crops: Crops) -> None:
    with served(SlowControl()) as url, sharing(url, "fake") as (client, _):
        client.ensure_ready()
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"whole call, 0\.9 s, is over"):
            client.encode(crops[:1], timeout_s=0.9)
        assert time.monotonic() - started < 1.4, "of the 1.7 that two questions of 0.9 would take"


def test_a_call_that_has_no_time_says_nothing_of_the_server(crops: Crops) -> None:
    fake = SlowControl()
    fake.metadata_s, fake.register_s = 0.0, 0.3
    with served(fake) as url, sharing(url, "fake") as (_, connection):
        memory = connection.shared_memory
        assert memory is not None
        first = memory.lend(1, Deadline(10))
        assert first is not None
        memory.give_back(first)
        assert memory.lend(4, Deadline(0.1)) is None
        assert memory.lend(1, Deadline(10)) is first
