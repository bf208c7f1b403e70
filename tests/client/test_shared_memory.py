"""Crops and embeddings by shared memory: right, alone in their place, and gone afterwards."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arcface_client import get_embedding_backend
from arcface_client.contract import Crops, Embeddings
from arcface_client.errors import DeadlineExceededError, InputError, ServerError, ServerUnavailableError
from arcface_client.triton import region, shared_memory
from arcface_client.triton.channel import Connection
from arcface_client.triton.deadline import Deadline
from arcface_client.triton.region import FOLDER, Region
from arcface_client.triton.registrations import check_metadata
from arcface_server import LocalTriton
from support import children
from support.fake_triton import FakeTriton, served
from support.processes import wait_until
from support.sharing import known_regions, sharing
from support.tiny import write_tiny_repository

pytestmark = pytest.mark.faults

EMBED_FOR_EVER = """
import sys
import numpy as np
from arcface_client import EmbeddingClient
from arcface_client.triton.channel import Connection

connection = Connection(sys.argv[1], retries=False, shared_memory=True)
client = EmbeddingClient(sys.argv[1], "tiny_onnx", connection=connection)
crops = np.zeros((32, 112, 112, 3), np.uint8)
while True:
    client.encode(crops)
    print(connection.transport, flush=True)
"""


def in_folder(names: set[str]) -> list[str]:
    return [name for name in names if (FOLDER / name).exists()]


def transport_after(url: str, crops: Crops, expected: Embeddings) -> str:
    with sharing(url) as (client, connection):
        np.testing.assert_allclose(client.encode(crops), expected, atol=1e-6)
        return connection.transport


def test_embeddings_are_the_same_and_nothing_is_left(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    before = known_regions(triton)
    with sharing(triton.grpc_url) as (client, connection):
        for count in (1, 7, 100, 3):
            np.testing.assert_allclose(client.encode(crops[:count]), expected[:count], atol=1e-6)
        assert connection.transport == "system shared memory"
        names = known_regions(triton) - before
        assert names
        assert not in_folder(names)
    assert not names & known_regions(triton)


def test_an_answer_stays_as_it_is_when_its_region_is_used_again(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    with sharing(triton.grpc_url) as (client, _):
        first = client.encode(crops[:4])
        client.encode(crops[4:8])
    np.testing.assert_allclose(first, expected[:4], atol=1e-6)


def test_threads_do_not_get_each_others_crops(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    def embed(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(15):
            rows = generator.integers(0, 100, generator.integers(1, 70))
            np.testing.assert_allclose(client.encode(crops[rows]), expected[rows], atol=1e-6)

    with sharing(triton.grpc_url) as (client, connection), ThreadPoolExecutor(4) as pool:
        list(pool.map(embed, range(4)))
        assert connection.transport == "system shared memory"


def test_a_region_whose_request_came_too_late_is_not_used_again_and_left_once_it_can_be(
    triton: LocalTriton, crops: Crops
) -> None:
    before = known_regions(triton)
    with sharing(triton.grpc_url, "slow_onnx") as (slow, connection):
        embeddings = slow.encode(crops[:2])
        (used,) = known_regions(triton) - before
        with pytest.raises(DeadlineExceededError):
            slow.encode(crops[2:4], timeout_s=0.1)
        np.testing.assert_allclose(slow.encode(crops[:2]), embeddings, atol=1e-6)
        memory = connection.shared_memory
        assert memory is not None
        # Whenever it opens another one, it asks the server again to leave that one.
        wait_until(lambda: memory.lend(1, Deadline(1.0)) is not None and used not in known_regions(triton))


def test_a_server_that_restarts_is_no_matter_to_the_caller(
    tmp_path: Path, crops: Crops, expected: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "RETRY_S", 0.0)
    write_tiny_repository(tmp_path, versions=(2,))
    transports = []
    with ExitStack() as stack:
        with LocalTriton(tmp_path, stop_timeout_s=1) as server:
            url = server.grpc_url
            client, connection = stack.enter_context(sharing(url))
            client.encode(crops)
        with LocalTriton(tmp_path, grpc_port=int(url.rpartition(":")[2]), stop_timeout_s=1) as again:
            wait_until(connection.is_live)
            for count in (100, 9):
                np.testing.assert_allclose(client.encode(crops[:count]), expected[:count], atol=1e-6)
                transports.append(connection.transport)
            assert transports == ["grpc", "system shared memory"]
            assert known_regions(again)


def test_memory_that_the_server_does_not_share_is_noticed(
    triton: LocalTriton, crops: Crops, expected: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with a server in another container, which has opened another file of the same name.
    make = Region.__init__

    def of_ones_own(region: Region, name: str, capacity: int) -> None:
        make(region, name, capacity)
        region._crops, region._embeddings = region._crops.copy(), region._embeddings.copy()

    monkeypatch.setattr(Region, "__init__", of_ones_own)
    assert transport_after(triton.grpc_url, crops, expected) == "grpc"


def test_no_room_in_the_folder_is_no_error(
    triton: LocalTriton, crops: Crops, expected: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert transport_after(triton.grpc_url, crops, expected) == "grpc"


def test_a_machine_without_locks_as_windows_goes_without(
    triton: LocalTriton, crops: Crops, expected: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert transport_after(triton.grpc_url, crops, expected) == "grpc"


def test_a_machine_without_such_memory_goes_without(
    triton: LocalTriton, crops: Crops, expected: Embeddings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(region, "FOLDER", tmp_path / "missing")
    assert transport_after(triton.grpc_url, crops, expected) == "grpc"


def test_a_server_that_does_not_know_of_it_is_served_without(crops: Crops) -> None:
    with served(FakeTriton()) as url, sharing(url, "fake") as (client, connection):
        assert client.encode(crops).shape == (100, 512)
        assert connection.transport == "grpc"


def test_what_fails_without_it_too_is_the_models_fault_and_it_goes_on(tmp_path: Path, crops: Crops) -> None:
    write_tiny_repository(tmp_path, poison=True)
    poisoned = crops[:2].copy()
    poisoned[1, 0, 0, 0] = 255
    sound = np.minimum(crops[:9], 254)
    with LocalTriton(tmp_path, stop_timeout_s=1) as server, sharing(server.grpc_url) as (client, connection):
        client.encode(sound)
        with pytest.raises(ServerError, match=r"A request for .* failed"):
            client.encode(poisoned)
        client.encode(sound)
        assert connection.transport == "system shared memory"


@pytest.mark.parametrize(("setting", "transport"), [("auto", "system shared memory"), ("off", "grpc")])
def test_an_embedder_uses_it_unless_told_not_to(
    triton: LocalTriton, crops: Crops, expected: Embeddings, setting: str, transport: str
) -> None:
    with get_embedding_backend(
        "triton",
        triton_url=triton.grpc_url,
        embedding_model="tiny",
        triton_shared_memory=setting,
        allow_cpu_fallback=False,
    ) as embedder:
        np.testing.assert_allclose(embedder.encode(crops), expected, atol=1e-6)
        assert embedder.diagnostics().transport == transport


def test_what_a_client_that_was_killed_left_the_next_one_clears_up(
    triton: LocalTriton, crops: Crops, expected: Embeddings
) -> None:
    with sharing(triton.grpc_url) as (client, _):
        client.encode(crops)
        before = known_regions(triton)
        with children.start(EMBED_FOR_EVER, triton.grpc_url) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "system shared memory\n"
            child.kill()
        left = known_regions(triton) - before
        assert left  # which is what the server keeps
        assert not in_folder(left)

        assert transport_after(triton.grpc_url, crops, expected) == "system shared memory"
        assert not left & known_regions(triton)
        # Not those of somebody who lives.
        assert before <= known_regions(triton)
    owner = next(iter(left)).rpartition("-")[0]
    assert not list(FOLDER.glob(f"{owner}*"))


def test_a_server_that_is_gone_is_said_and_nothing_is_kept_for_it(crops: Crops) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # so that nobody else has the port
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with sharing(url) as (client, _), pytest.raises(ServerUnavailableError):
            client.encode(crops)
        assert not list(FOLDER.glob(f"arcface-client-{hashlib.sha256(url.encode()).hexdigest()[:8]}-*"))


@pytest.mark.parametrize(
    ("version", "extensions", "problem"),
    [
        ("2.49.0", ["system_shared_memory"], r"2\.49\.0 does not share memory safely; 2\.50"),
        ("devel", ["system_shared_memory"], "devel does not share memory safely"),
        ("2.60.0", ["statistics"], "no extension system_shared_memory"),
    ],
)
def test_servers_that_cannot_do_it_safely_are_known(version: str, extensions: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_metadata(SimpleNamespace(version=version, extensions=extensions))


def test_it_does_not_go_with_grpcs_own_retries() -> None:
    with pytest.raises(InputError, match="at most one"):
        Connection("localhost:8001", retries=True, shared_memory=True)
