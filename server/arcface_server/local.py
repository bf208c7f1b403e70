"""LocalTriton: the tritonserver of this environment, started and stopped from Python."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from .errors import RepositoryError, TritonDiedError, TritonStartError
from .installation import find_installation
from .launch import (
    LOCALHOST,
    check_flags,
    reserve_addresses,
    server_command,
    server_environment,
    write_backends,
)
from .process import SupervisedProcess

_POLL_INTERVAL_S: Final = 0.02
_REQUEST_TIMEOUT_S: Final = 5.0
_LOG_TAIL_LINES: Final = 5


class LocalTriton:
    """The real Triton Inference Server over a model repository, for tests, notebooks and laptops.

    ::

        with LocalTriton("model_repository") as server:
            client = EmbeddingClient(server.grpc_url, model="arcface_r100_onnx")

    Inside the ``with`` block the server runs, and every model has been loaded or has failed to load. The
    server ends with the block, or with this process, however that ends.

    Args:
        model_repository: Folder of models, or a URL that Triton reads (``s3://...``).
        host: Address to listen on.
        http_port: Port for HTTP; None for any free one, here and for the other ports.
        grpc_port: Port for gRPC.
        metrics_port: Port for Prometheus metrics.
        flags: Further flags for tritonserver.
        log_path: File for the server's log; None keeps it for error messages only.
        log_to_stderr: Write the log to standard error instead.
        ready_timeout_s: Time allowed until the models are loaded.
        stop_timeout_s: Time allowed for requests in flight when the server is ended.

    Raises:
        FlagError: This class sets one of the flags itself.
    """

    def __init__(
        self,
        model_repository: str | Path,
        *,
        host: str = LOCALHOST,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        flags: Sequence[str] = (),
        log_path: str | Path | None = None,
        log_to_stderr: bool = False,
        ready_timeout_s: float = 300.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._repository = str(model_repository)
        self._host = host
        self._wanted_ports = (http_port, grpc_port, metrics_port)
        self._flags = check_flags(flags)
        self._log_path = None if log_path is None else Path(log_path)
        self._log_to_stderr = log_to_stderr
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._stack = ExitStack()

    def __enter__(self) -> LocalTriton:
        """Start the server and wait until it is ready.

        Raises:
            TritonNotInstalledError: There is no tritonserver to start.
            RepositoryError: The model repository is missing or holds no model.
            PortError: A port is in use.
            TritonStartError: The server ended, or was not ready in time.
        """
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """End the server and every process it started."""
        self._stack.close()

    @property
    def http_url(self) -> str:
        """Address of HTTP: ``host:port``."""
        return self._url(self._addresses.http_port)

    @property
    def grpc_url(self) -> str:
        """Address of gRPC: ``host:port``."""
        return self._url(self._addresses.grpc_port)

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._url(self._addresses.metrics_port)}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the server ends on its own.

        Raises:
            TritonDiedError: It has ended, which always means that something is wrong.
        """
        code = self._process.wait()
        raise TritonDiedError(f"tritonserver {_describe_exit(code)} while it served.{self._log_tail()}")

    def _url(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _start(self, stack: ExitStack) -> None:
        if "://" not in self._repository:
            _check_repository(Path(self._repository))
        installation = find_installation()
        self._addresses = reserve_addresses(self._host, self._wanted_ports)
        folder = Path(tempfile.mkdtemp(prefix="arcface-server-"))
        stack.callback(_remove, folder, os.getpid())
        backends = folder / "backends"
        write_backends(installation, backends)
        log = None
        if not self._log_to_stderr:
            self._log_file = self._log_path or folder / "tritonserver.log"
            log = stack.enter_context(self._log_file.open("wb"))
        command = server_command(installation, self._repository, backends, self._addresses, self._flags)
        environment = server_environment(installation, os.environ)
        self._process = SupervisedProcess(command, environment, folder, log)
        stack.callback(self._process.stop, self._stop_timeout_s)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout_s
        ports = self._addresses
        while True:
            # Triton opens its ports after it has loaded the models, the one of the metrics last. The process
            # is looked at afterwards: another server may have been quicker to take the port, and answer.
            ready = self._answers(ports.http_port, "/v2/health/ready") and self._answers(
                ports.metrics_port, "/metrics"
            )
            code = self._process.poll()
            if code is not None:
                raise TritonStartError(
                    f"tritonserver {_describe_exit(code)} before it was ready.{self._log_tail()}"
                )
            if ready:
                return
            if time.monotonic() > deadline:
                raise TritonStartError(
                    f"tritonserver was not ready within {self._ready_timeout_s:g} s; set ready_timeout_s "
                    f"higher, or see what it is waiting for.{self._log_tail()}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _answers(self, port: int, path: str) -> bool:
        host = LOCALHOST if self._host == "0.0.0.0" else self._host
        connection = http.client.HTTPConnection(host, port, timeout=_REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _log_tail(self) -> str:
        if self._log_to_stderr:
            return " Its log is above."
        lines = self._log_file.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and line[0] not in "+|"]  # without Triton's tables
        return "\n".join([" The end of its log:", *said[-_LOG_TAIL_LINES:]])


def _check_repository(repository: Path) -> None:
    advice = "expected a folder with one folder for each model; `arcface-builder build` writes one"
    if not repository.is_dir():
        problem = "is not a folder" if repository.exists() else "does not exist"
        raise RepositoryError(f"The model repository {repository} {problem}; {advice}.")
    if (repository / "config.pbtxt").is_file():
        parent = repository.absolute().parent
        raise RepositoryError(f"{repository} is the folder of one model; give its parent, {parent}.")
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in repository.iterdir()):
        raise RepositoryError(f"The model repository {repository} holds no model; {advice}.")


def _remove(folder: Path, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # a forked process leaves it to the server
        shutil.rmtree(folder)


def _describe_exit(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
