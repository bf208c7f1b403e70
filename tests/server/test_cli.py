"""``arcface-server run`` as a user starts it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arcface_client import EmbeddingClient
from arcface_server.cli import main
from support.processes import group_members, wait_until
from support.tiny import write_tiny_repository

COMMAND = [sys.executable, "-m", "arcface_server", "run"]


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.faults
def test_it_prints_its_addresses_and_ends_with_no_process_left(
    small_repository: Path, ending: signal.Signals
) -> None:
    with running("--repository", small_repository, "--json", "--", "--id=passed-through") as process:
        report = json.loads(ready_line(process))
        server_pid = report["pid"]
        assert len(group_members(server_pid)) == 3  # tritonserver, its watcher, and the model's stub
        host, _, port = report["http_url"].partition(":")
        assert host == "127.0.0.1"
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("GET", "/v2/models/tiny_onnx/ready")
        assert connection.getresponse().status == 200
        connection.close()

        process.send_signal(ending)
        rest, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""
    assert "Traceback" not in log
    assert "successfully loaded 'tiny_onnx'" in log
    assert "passed-through" in log
    assert group_members(server_pid) == []


@pytest.mark.faults
def test_a_server_whose_command_is_killed_ends_too_and_its_folder_is_removed(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running("--model-repository", small_repository, "--json") as process:
        server_pid = json.loads(ready_line(process))["pid"]
        assert len(list(tmp_path.glob("arcface-server-*"))) == 1
        process.kill()
        process.wait()
        wait_until(lambda: group_members(server_pid) == [])
    assert list(tmp_path.glob("arcface-server-*")) == []


@pytest.mark.faults
def test_a_server_that_hangs_ends_after_its_command_too(small_repository: Path) -> None:
    with running("--model-repository", small_repository, "--json") as process:
        server_pid = json.loads(ready_line(process))["pid"]
        os.kill(server_pid, signal.SIGSTOP)
        process.kill()  # without a wait it stays a zombie, as in a container without an init process
        wait_until(lambda: group_members(server_pid) == [], timeout_s=30)


def test_a_killed_command_leaves_no_stub_while_models_load(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for index in range(4):
        write_tiny_repository(repository, f"tiny{index}", work=50)
    with running("--model-repository", repository) as process:
        wait_until(lambda: stubs_of(repository) != [], timeout_s=30)
        process.kill()
        process.wait()
        wait_until(lambda: stubs_of(repository) == [], timeout_s=30)


def test_what_changes_the_server_needs_the_key_of_its_file(small_repository: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    explicit = ("--", "--model-control-mode=explicit", "--load-model=*")
    with running("--repository", small_repository, "--admin-key-file", key, "--json", *explicit) as process:
        connection = http.client.HTTPConnection(json.loads(ready_line(process))["http_url"])
        for path in ("/v2/repository/models/tiny_onnx/load", "/v2/trace/setting", "/v2/logging"):
            for headers, expected in (
                ({}, 403),
                ({"admin-key": "wrong"}, 403),
                ({"admin-key": "secret"}, 200),
            ):
                connection.request("POST", path, "{}", headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == expected, path
        connection.close()


@pytest.mark.parametrize(("content", "said"), [(None, "Cannot read the key"), (" ", "is empty")])
def test_a_key_file_without_a_key_is_wrong_usage(
    small_repository: Path, tmp_path: Path, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    arguments = ["--model-repository", str(small_repository), "--admin-key-file", str(tmp_path / "key")]
    assert main(["run", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_it_listens_on_ipv6(small_repository: Path) -> None:
    with running("--model-repository", small_repository, "--host", "[::1]") as process:
        urls = re.match(r"Triton is ready: gRPC (\[::1\]:\d+), HTTP \[::1\]:\d+", ready_line(process))
        assert urls is not None
        with EmbeddingClient(urls[1], model="tiny_onnx") as client:
            client.ensure_ready()


def test_a_server_that_dies_is_an_error(small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running("--model-repository", small_repository, "--grpc-port", str(port), "--json") as process:
        report = json.loads(ready_line(process))
        assert report["grpc_url"] == f"127.0.0.1:{port}"
        os.kill(report["pid"], signal.SIGKILL)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert log.splitlines()[-1] == (
        "arcface-server: tritonserver was ended by signal 9 while it served. Its log is above."
    )
    assert group_members(report["pid"]) == []


def test_the_folder_of_one_model_is_refused_with_its_parent(
    small_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = next(path.parent for path in small_repository.glob("*/config.pbtxt"))
    assert main(["run", "--model-repository", str(model)]) == 1
    assert f"{model} is the folder of one model; give its parent, {model.parent}." in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["does not exist", "is not a folder", "holds no model"])
def test_a_repository_that_cannot_be_served_is_one_line(
    tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "model_repository"
    if problem == "is not a folder":
        repository.touch()
    elif problem == "holds no model":
        (repository / ".manifests").mkdir(parents=True)
    assert main(["run", "--model-repository", str(repository)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"arcface-server: The model repository {repository} {problem}; expected")
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--grpc-port=1", "--allow-http=false"])
def test_a_flag_that_the_command_sets_itself_is_wrong_usage(
    small_repository: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model-repository", str(small_repository), "--", flag]) == 2
    assert f"flag {flag} is set by" in " ".join(capsys.readouterr().err.split())


def stubs_of(repository: Path) -> list[int]:
    """Processes that run a model of the repository."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                arguments = (entry / "cmdline").read_bytes()
                if b"triton_python_backend_stub" in arguments and str(repository).encode() in arguments:
                    found.append(int(entry.name))
    return found
