"""Where the installed ``nvidia-pytriton`` keeps the real tritonserver.

PyTriton itself is never imported; only the files that it carries are used.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from .errors import TritonNotInstalledError

FLAGS: Final = ("--disable-auto-complete-config", "--exit-on-error=false", "--strict-readiness=false")
"""How this project starts every tritonserver: a model that cannot load does not stop the others, and
configurations are used as the builder writes them."""

CONTAINER_COMMAND: Final = (
    "docker run --rm --gpus all -p 127.0.0.1:8000-8002:8000-8002 -v $PWD/model_repository:/models:ro "
    f"nvcr.io/nvidia/tritonserver:<YY.MM>-py3 tritonserver --model-repository=/models {' '.join(FLAGS)}"
)


@dataclass(frozen=True)
class Installation:
    """The files that a server is assembled from.

    Attributes:
        tritonserver: The server's program.
        python_backend: Folder with Triton's Python backend.
        stub: Program that runs a Python backend's ``model.py``, built for the running CPython.
        library_dirs: Folders of the shared libraries that the programs above need.
    """

    tritonserver: Path
    python_backend: Path
    stub: Path
    library_dirs: tuple[Path, ...]


def find_installation() -> Installation:
    """Find the Triton that this environment's ``nvidia-pytriton`` carries.

    Raises:
        TritonNotInstalledError: There is none; the message says how to install it, or which container to run
            on a machine without a wheel.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonNotInstalledError(
            "No tritonserver in this environment; install it with: pip install 'arcface-triton[server]'. It "
            "has wheels for Linux on x86_64 with glibc 2.35 or later and Python 3.12 or earlier. Elsewhere, "
            f"run NVIDIA's container (without an NVIDIA GPU, leave out --gpus all): {CONTAINER_COMMAND}"
        )
    numpy = metadata.version("numpy")
    if not numpy.startswith("1."):
        raise TritonNotInstalledError(
            f"numpy {numpy} is installed, with which this Triton's Python backend answers without data; "
            "install an older one: pip install 'numpy<2' (and 'pandas<3', if pandas is there)"
        )
    package = Path(spec.submodule_search_locations[0])
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    triton = package / "tritonserver"
    installation = Installation(
        tritonserver=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / version / "triton_python_backend_stub",
        library_dirs=(package.parent / "nvidia_pytriton.libs", *_libpython_dirs(version)),
    )
    for file in (installation.tritonserver, installation.stub):
        if not file.is_file():
            raise TritonNotInstalledError(
                f"The installed nvidia-pytriton lacks {file}; reinstall it with: "
                "pip install --force-reinstall nvidia-pytriton"
            )
    return installation


def _libpython_dirs(version: str) -> tuple[Path, ...]:
    """Folder of the running interpreter's libpython, which the stub is linked to; empty if the system has it.

    Raises:
        TritonNotInstalledError: The interpreter is built without one, and the system has none.
    """
    # LIBDIR is where the interpreter was built to be installed; the second is where it is.
    for folder in (Path(sysconfig.get_config_var("LIBDIR") or ""), Path(sys.base_prefix, "lib")):
        if (folder / f"libpython{version}.so.1.0").is_file():
            return (folder,)
    if ctypes.util.find_library(f"python{version}") is None:
        raise TritonNotInstalledError(
            f"Triton's Python backend needs libpython{version}.so.1.0, which this interpreter "
            f"({sys.executable}) is built without; install it (Debian: apt-get install libpython{version}), "
            "or use a Python that is built with --enable-shared."
        )
    return ()
