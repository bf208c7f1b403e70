"""How tritonserver is called: its flags and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from arcface_client.runtimes.base import TELEMETRY_VARIABLE

from .flags import FLAGS
from .installation import Installation

LOCALHOST: Final = "127.0.0.1"


class Addresses(NamedTuple):
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int


def server_command(
    installation: Installation, repository: str, backends: Path, addresses: Addresses, flags: Sequence[str]
) -> list[str]:
    """The program and its arguments.

    Args:
        installation: The Triton to run.
        repository: The model repository, a folder or a URL.
        backends: Folder that ``assemble_backends`` wrote.
        addresses: Where to listen.
        flags: Further flags, which ``check_flags`` let pass.
    """
    command = [
        str(installation.tritonserver),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
    ]
    # Triton listens on every address of the machine unless told otherwise. IPv6 is written in two ways.
    is_ipv6 = ":" in addresses.host
    http_host = f"ipv6:{addresses.host}" if is_ipv6 else addresses.host
    command.append(f"--http-address={http_host}")
    command.append(f"--grpc-address={f'[{addresses.host}]' if is_ipv6 else addresses.host}")
    command.append(f"--metrics-address={http_host}")
    command.append(f"--http-port={addresses.http_port}")
    command.append(f"--grpc-port={addresses.grpc_port}")
    command.append(f"--metrics-port={addresses.metrics_port}")
    return [*command, *FLAGS, *flags]


def server_environment(installation: Installation, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment for tritonserver, in which the backends import what this interpreter imports."""
    environment = {TELEMETRY_VARIABLE: "1", **inherited}  # for the ONNX Runtime of the backends
    libraries = [str(folder) for folder in installation.library_dirs]
    environment["LD_LIBRARY_PATH"] = _join_paths(*libraries, inherited.get("LD_LIBRARY_PATH"))
    # The Python inside the backend takes the environment of the first python3 on the PATH for its own.
    # So it has this one's packages without a PYTHONPATH, which would carry a test's or script's folder.
    environment["PATH"] = _join_paths(str(Path(sys.executable).parent), inherited.get("PATH"))
    return environment


def _join_paths(*paths: str | None) -> str:
    return os.pathsep.join(path for path in paths if path)
