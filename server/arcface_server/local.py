"""A tritonserver of this environment, started and ended from Python."""

from __future__ import annotations

import http.client
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from .backend_directory import assemble_backends
from .errors import FlagError, RepositoryError, TritonDiedError, TritonStartError
from .installation import Installation, find_installation
from .ports import reserve_ports
from .process import TetheredProcess

LOCALHOST: Final = "127.0.0.1"

# A model that cannot load does not stop the others, and configurations are complete as the builder
# writes them, so that no backend has to guess.
FLAGS: Final = ("--disable-auto-complete-config", "--exit-on-error=false", "--strict-readiness=false")

_OWN_FLAGS: Final = {
    "--backend-directory",
    *(f"--{name}-{noun}" for name in ("http", "grpc", "metrics") for noun in ("address", "port")),
    *(f"--allow-{name}" for name in ("http", "grpc", "metrics")),
}

_POLL_INTERVAL_S: Final = 0.02
_REQUEST_TIMEOUT_S: Final = 5.0
_LOG_TAIL_LINES: Final = 5


class LocalTriton:
    """The real Triton Inference Server over a model repository, for tests, notebooks and laptops.

    ::

        with LocalTriton("model_repository") as server:
            client = EmbeddingClient(server.grpc_url, model="arcface_r100_onnx")

    Inside the ``with`` block the server runs and every model has been loaded, or has failed to load.
    The server ends with the block, and at the latest with this process, however that ends.

    Args:
        model_repository: Folder of models, or a URL that Triton reads (``s3://...``).
        host: Address to listen on.
        http_port: Port for HTTP; None is any free one. The other ports likewise.
        grpc_port: Port for gRPC.
        metrics_port: Port for Prometheus metrics.
        flags: Further flags for tritonserver.
        log_path: File for the server's log; None keeps it for error messages only.
        log_to_stderr: Write the log to standard error instead.
        ready_timeout_s: Time allowed until the models are loaded.
        stop_timeout_s: Time allowed for requests in flight when the server is ended.

    Raises:
        FlagError: A flag is one that is set from the other arguments, or by this class.
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

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server and every process it started."""
        self._stack.close()

    @property
    def http_url(self) -> str:
        """Address of HTTP, as ``host:port``."""
        return f"{self._host}:{self._ports[0]}"

    @property
    def grpc_url(self) -> str:
        """Address of gRPC, as ``host:port``."""
        return f"{self._host}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._host}:{self._ports[2]}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the server ends on its own.

        Raises:
            TritonDiedError: It has ended, which it does not do unless something is wrong.
        """
        code = self._process.wait()
        raise TritonDiedError(f"tritonserver {_describe_exit(code)} while it served.{self._log_tail()}")

    def _start(self, stack: ExitStack) -> None:
        if "://" not in self._repository:
            check_repository(Path(self._repository))
        installation = find_installation()
        self._ports = reserve_ports(self._host, self._wanted_ports)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arcface-server-")))
        backends = folder / "backends"
        assemble_backends(installation, backends)
        log = None
        if not self._log_to_stderr:
            self._log_path = self._log_path or folder / "tritonserver.log"
            log = stack.enter_context(self._log_path.open("wb"))
        self._process = TetheredProcess(
            self._command(installation, backends), server_environment(installation, os.environ), log
        )
        stack.callback(self._process.stop, self._stop_timeout_s)
        self._wait_until_ready()

    def _command(self, installation: Installation, backends: Path) -> list[str]:
        command = [
            str(installation.tritonserver),
            f"--model-repository={self._repository}",
            f"--backend-directory={backends}",
        ]
        for name, port in zip(("http", "grpc", "metrics"), self._ports, strict=True):
            # Triton listens on every address of the machine unless told otherwise.
            command += [f"--{name}-address={self._host}", f"--{name}-port={port}"]
        return [*command, *FLAGS, *self._flags]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout_s
        # Triton opens its ports after it has loaded the models, that of the metrics last.
        while not (self._answers(0, "/v2/health/ready") and self._answers(2, "/metrics")):
            code = self._process.poll()
            if code is not None:
                raise TritonStartError(
                    f"tritonserver {_describe_exit(code)} before it was ready.{self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise TritonStartError(
                    f"tritonserver was not ready within {self._ready_timeout_s:g} s; allow more time, "
                    f"or see what it is waiting for.{self._log_tail()}"
                )
            time.sleep(_POLL_INTERVAL_S)

    def _answers(self, port_index: int, path: str) -> bool:
        host = LOCALHOST if self._host == "0.0.0.0" else self._host
        connection = http.client.HTTPConnection(host, self._ports[port_index], timeout=_REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _log_tail(self) -> str:
        if self._log_path is None or self._log_to_stderr:
            return " Its log is above."
        lines = self._log_path.read_text(errors="replace").splitlines()
        said = [line for line in lines if line.strip() and line[0] not in "+|"]  # not Triton's tables
        return "\n".join([" The end of its log:", *said[-_LOG_TAIL_LINES:]])


def check_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """Check further flags for tritonserver.

    Raises:
        FlagError: A flag is one that this package sets itself.
    """
    for flag in flags:
        if flag.split("=")[0] in _OWN_FLAGS:
            raise FlagError(f"tritonserver's flag {flag} is set here; give host and ports instead.")
    return tuple(flags)


def check_repository(repository: Path) -> None:
    """Check that a folder holds at least one model, before a server is started for it.

    Raises:
        RepositoryError: It is missing, no folder, or empty.
    """
    advice = "expected a folder with one folder for each model, as `arcface-builder build` writes it"
    if not repository.is_dir():
        problem = "is no folder" if repository.exists() else "does not exist"
        raise RepositoryError(f"The model repository {repository} {problem}; {advice}.")
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in repository.iterdir()):
        raise RepositoryError(f"The model repository {repository} holds no model; {advice}.")


def server_environment(installation: Installation, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment for tritonserver, in which the backends import what this interpreter imports."""
    environment = dict(inherited)
    libraries = [str(folder) for folder in installation.library_dirs]
    environment["LD_LIBRARY_PATH"] = _join_paths(*libraries, inherited.get("LD_LIBRARY_PATH"))
    # The Python inside the backend takes the environment of the first python3 on the PATH for its own.
    # So it has this one's packages without a PYTHONPATH, which would carry a test's or script's folder.
    environment["PATH"] = _join_paths(str(Path(sys.executable).parent), inherited.get("PATH"))
    return environment


def _join_paths(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)


def _describe_exit(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
