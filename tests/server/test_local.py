from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from arcface_server import LocalTriton
from arcface_server.errors import PortError, TritonDiedError, TritonStartError
from arcface_server.installation import find_installation
from arcface_server.launch import reserve_addresses, server_environment
from support.processes import group_members, wait_until


def is_ready(http_url: str) -> bool:
    connection = http.client.HTTPConnection(http_url)
    try:
        connection.request("GET", "/v2/models/tiny_onnx/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.faults
def test_two_servers_of_one_repository_run_at_once(small_repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with LocalTriton(small_repository, log_path=log) as one, LocalTriton(str(small_repository)) as other:
        urls = {server.http_url for server in (one, other)} | {server.grpc_url for server in (one, other)}
        assert len(urls) == 4
        assert is_ready(one.http_url)
        assert is_ready(other.http_url)
        with urllib.request.urlopen(one.metrics_url) as metrics:
            assert b"nv_inference_count" in metrics.read()
        pids = [one.pid, other.pid]
    assert [group_members(pid) for pid in pids] == [[], []]
    assert "successfully loaded 'tiny_onnx'" in log.read_text()


@pytest.mark.faults
def test_a_server_can_be_started_again_and_from_a_thread_that_ends(small_repository: Path) -> None:
    server = LocalTriton(small_repository)
    starter = threading.Thread(target=server.__enter__)
    starter.start()
    starter.join()
    wait_until(lambda: not starter.is_alive())
    assert is_ready(server.http_url)
    first = server.pid
    server.__exit__(None, None, None)
    with server:
        assert is_ready(server.http_url)
        assert server.pid != first


def test_a_server_that_is_killed_is_reported_with_its_last_log_lines(small_repository: Path) -> None:
    with LocalTriton(small_repository) as server:
        os.kill(server.pid, 9)
        with pytest.raises(TritonDiedError, match=r"signal 9 while it served\. The end of its log:\nI\d+"):
            server.wait()


def test_a_server_that_cannot_start_is_an_error_with_its_last_log_lines(small_repository: Path) -> None:
    server = LocalTriton(small_repository, flags=["--model-control-mode=sometimes"])
    with pytest.raises(TritonStartError, match=r"(?s)exit code 1 before it was ready.*control-mode"), server:
        pass


def test_a_server_that_is_not_ready_in_time_is_stopped(small_repository: Path) -> None:
    server = LocalTriton(small_repository, ready_timeout_s=0.01)
    with pytest.raises(TritonStartError, match=r"not ready within 0\.01 s"), server:
        pass
    assert group_members(server.pid) == []


def test_free_ports_differ_and_given_ones_are_kept() -> None:
    given = reserve_addresses("127.0.0.1", [None, None, None]).http_port
    addresses = reserve_addresses("127.0.0.1", [None, given, None])
    assert addresses.grpc_port == given
    assert len({addresses.http_port, given, addresses.metrics_port}) == 3


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("127.0.0.1", 70000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_listened_on_is_named(
    small_repository: Path, host: str, port: int | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1] if port is None else port
        with pytest.raises(PortError, match=rf"Cannot listen on {host}:{wanted} \(.*; choose a free port"):
            LocalTriton(small_repository, host=host, http_port=wanted).__enter__()


def test_the_backends_run_in_this_interpreters_environment() -> None:
    environment = server_environment(find_installation(), {"PATH": "/bin", "LD_LIBRARY_PATH": "/opt/lib"})
    assert environment["PATH"] == os.pathsep.join([str(Path(sys.executable).parent), "/bin"])
    assert environment["LD_LIBRARY_PATH"].endswith(":/opt/lib")
    assert "PYTHONPATH" not in environment
