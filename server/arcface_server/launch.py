"""How tritonserver is started: its flags, ports, environment and folder of backends."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.models.naming import SERVER_CONFIG
from arcface_client.runtimes.base import TELEMETRY_VARIABLE

from .errors import FlagError, PortError
from .installation import FLAGS, Installation

LOCALHOST: Final = "127.0.0.1"

_SERVICES: Final = ("http", "grpc", "metrics")
_OWN_FLAGS: Final = {
    "--backend-directory",
    *(f"--{service}-{noun}" for service in _SERVICES for noun in ("address", "port")),
    *(f"--allow-{service}" for service in _SERVICES),
}
_OUR_BACKENDS: Final = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Addresses:
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int


def check_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """Check a user's further flags for tritonserver.

    Raises:
        FlagError: This package sets one of the flags itself.
    """
    for flag in flags:
        if flag.split("=")[0] in _OWN_FLAGS:
            raise FlagError(
                f"tritonserver's flag {flag} is set by arcface-server; use its options for host and ports."
            )
    return tuple(flags)


def restriction_flags(key_file: Path, flags: Sequence[str]) -> list[str]:
    """Flags that let only who knows a key change the server: deploy/kubernetes/base/serve.sh does the same.

    With explicit model control among the other flags, that is restricted as well.

    Raises:
        FlagError: The file cannot be read, or has no key.
    """
    try:
        key = key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise FlagError(f"Cannot read the key from {key_file}: {why}.") from error
    if not key:
        raise FlagError(f"{key_file} is empty; expected a key, for example of `openssl rand -hex 32`.")
    explicit = any("explicit" in flag for flag in flags)
    apis = f"{'model-repository,' if explicit else ''}shared-memory,trace,logging:admin-key={key}"
    return [f"--grpc-restricted-protocol={apis}", f"--http-restricted-api={apis}"]


def reserve_addresses(host: str, ports: Sequence[int | None]) -> Addresses:
    """Choose ports for HTTP, gRPC and metrics that can be listened on, where None means any free one.

    Another process may still take one before it is used.

    Raises:
        PortError: A given port is in use, or the address is not one of this machine's.
    """
    with ExitStack() as stack:  # All stay bound until all are chosen, so that none is chosen twice.
        # The given ones first, or a free one might be one of them.
        bound = {
            index: stack.enter_context(_bind(host, port or 0))
            for index, port in sorted(enumerate(ports), key=lambda item: item[1] is None)
        }
        return Addresses(host, *(bound[index].getsockname()[1] for index in range(len(ports))))


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A port can be used again while connections of the server before are being closed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)  # Two sockets may be bound to one port; only one can listen.
    except (OSError, OverflowError) as error:
        listener.close()
        raise PortError(
            f"Cannot listen on {host}:{port} ({error}); choose a free port, and an address of this machine."
        ) from error
    return listener


def server_command(
    installation: Installation, repository: str, backends: Path, addresses: Addresses, flags: Sequence[str]
) -> list[str]:
    """The program and its arguments; ``backends`` is the folder that ``write_backends`` wrote."""
    # IPv6 addresses have a different form for HTTP and gRPC.
    host, is_ipv6 = addresses.host, ":" in addresses.host
    http_host, grpc_host = (f"ipv6:{host}", f"[{host}]") if is_ipv6 else (host, host)
    return [
        str(installation.tritonserver),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-address={http_host}",
        f"--grpc-address={grpc_host}",
        f"--metrics-address={http_host}",
        f"--http-port={addresses.http_port}",
        f"--grpc-port={addresses.grpc_port}",
        f"--metrics-port={addresses.metrics_port}",
        f"--model-config-name={SERVER_CONFIG}",
        *FLAGS,
        *flags,
    ]


def server_environment(installation: Installation, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment for tritonserver, whose backends import the packages of this interpreter."""
    libraries = [str(folder) for folder in installation.library_dirs]
    return {
        TELEMETRY_VARIABLE: "1",
        **inherited,
        "LD_LIBRARY_PATH": _join_paths(*libraries, inherited.get("LD_LIBRARY_PATH", "")),
        # The backend's Python uses the environment of the first python3 on the PATH. A PYTHONPATH would do
        # too, but would also bring in the folder of the script or test that runs.
        "PATH": _join_paths(str(Path(sys.executable).parent), inherited.get("PATH", "")),
    }


def write_backends(installation: Installation, target: Path) -> None:
    """Write the folder of backends that tritonserver is started with.

    Triton runs a backend that is a ``model.py`` through its Python backend. So the folder holds that one, and
    one folder for each backend of this package, with the name that ``config.pbtxt`` uses::

        python/       libtriton_python.so  triton_python_backend_utils.py  triton_python_backend_stub
        onnxruntime/  model.py
        openvino/     model.py
        tensorrt/     model.py
    """
    python = target / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copyfile(installation.python_backend / name, python / name)
    shutil.copyfile(installation.stub, python / installation.stub.name)
    (python / installation.stub.name).chmod(0o755)
    for model in _OUR_BACKENDS.glob("*/model.py"):
        folder = target / model.parent.name
        folder.mkdir()
        shutil.copyfile(model, folder / "model.py")


def _join_paths(*paths: str) -> str:
    return os.pathsep.join(filter(None, paths))
