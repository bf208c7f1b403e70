"""Where perf_analyzer comes from: this environment, the PATH, or one of NVIDIA's wheels.

NVIDIA's SDK container has it on the PATH. PyPI's ``perf-analyzer`` has it for C libraries newer than that of
Debian 12. Before, tritonclient's wheels carried it; the one in 2.51.0 is the last that runs there. It needs
two shared libraries that such systems lack, and nvidia-pytriton's wheel has them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from arcface_client.models.files import cache_folder, sha256_of

from ..errors import PerfAnalyzerError
from ..installation import find_installation

_ELSEWHERE: Final = (
    "Or run `arcface-server perf` where perf_analyzer is on the PATH, as in NVIDIA's container "
    "nvcr.io/nvidia/tritonserver:<YY.MM>-py3-sdk."
)


@dataclass(frozen=True)
class Wheel:
    """A wheel with the program in it.

    Attributes:
        package: Its name on PyPI.
        version: Its version.
        platform: Its platform.
        sha256: Its checksum.
        member: The program's path in it.
        libraries: Shared libraries that it needs and systems lack: the name that it loads, and the pattern of
            the file that nvidia-pytriton carries.
    """

    package: str
    version: str
    platform: str
    sha256: str
    member: str
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the program is kept."""
        return cache_folder() / "perf_analyzer" / self.version


NEWER: Final = Wheel(
    "perf-analyzer",
    "2.60.0",
    "manylinux_2_38_x86_64",
    "23ef56b107ae9233e5cf09fbdf508dd9b936a52f1bae2f63f53c8117087b3f25",
    "perf_analyzer/bin/perf_analyzer",
)
OLDER: Final = Wheel(
    "tritonclient",
    "2.51.0",
    "manylinux1_x86_64",
    "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    "tritonclient-2.51.0.data/data/bin/perf_analyzer",
    {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"},
)


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that can be run.

    Attributes:
        program: Its path.
        library_dir: Folder of shared libraries that it needs; None if the system has them.
    """

    program: Path
    library_dir: Path | None = None

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment to run it in."""
        paths = [str(self.library_dir or ""), inherited.get("LD_LIBRARY_PATH", "")]
        return {**inherited, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}


def find_perf_analyzer() -> PerfAnalyzer:
    """Find perf_analyzer in this environment, on the PATH, or in the cache, where it is downloaded to once.

    Raises:
        PerfAnalyzerError: It is not found and cannot be downloaded.
        TritonNotInstalledError: It is not found, and nvidia-pytriton, which has libraries for it, neither.
    """
    installed = _installed()
    if installed is not None:
        return PerfAnalyzer(installed)
    wheel = wheel_for(platform.libc_ver())
    if not wheel.folder.is_dir():
        _install(wheel)
    return PerfAnalyzer(wheel.folder / "perf_analyzer", wheel.folder / "lib")


def _installed() -> Path | None:
    """The program of PyPI's perf-analyzer, else the one on the PATH.

    The package comes first, since the script that it puts on the PATH ends with 0 whatever happened. Its
    version 0.1.0 holds no program.
    """
    spec = importlib.util.find_spec("perf_analyzer")
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "bin", "perf_analyzer").is_file():
            return Path(folder, "bin", "perf_analyzer")
    on_path = shutil.which("perf_analyzer")
    return None if on_path is None else Path(on_path)


def wheel_for(libc: tuple[str, str]) -> Wheel:
    """The wheel that runs with a C library, given as ``platform.libc_ver`` does."""
    name, version = libc
    return NEWER if name == "glibc" and tuple(map(int, version.split("."))) >= (2, 38) else OLDER


def _install(wheel: Wheel) -> None:
    """Write the program and its libraries; the folder appears whole or not at all."""
    carried = find_installation().library_dirs[0] if wheel.libraries else Path()
    wheel.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.folder.parent) as scratch:
        staged = Path(scratch) / "staged"
        with zipfile.ZipFile(download(wheel, Path(scratch))) as archive:
            program = Path(archive.extract(wheel.member, scratch))
        program.chmod(0o755)
        (staged / "lib").mkdir(parents=True)
        program.rename(staged / "perf_analyzer")
        for name, pattern in wheel.libraries.items():
            file = next(carried.glob(pattern), None)
            if file is None:
                raise PerfAnalyzerError(f"{carried} lacks {name}. {_ELSEWHERE}")
            shutil.copyfile(file, staged / "lib" / name)
        with suppress(OSError):  # another process was quicker
            staged.rename(wheel.folder)


def download(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip, which uses the user's index, proxy and certificates.

    Raises:
        PerfAnalyzerError: pip failed, or the file has another SHA-256.
    """
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # The program needs no Python. Without these options, pip would refuse a wheel for another Python.
    command += [f"--platform={wheel.platform}", "--python-version=3.10", f"--dest={folder}", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PerfAnalyzerError(
            f"pip cannot download {requirement}: {last_line(result.stderr)}. {_ELSEWHERE}"
        )
    (file,) = folder.glob("*.whl")
    digest = sha256_of(file)
    if digest != wheel.sha256:
        raise PerfAnalyzerError(
            f"{file.name} has the SHA-256 {digest}; expected {wheel.sha256}. "
            "The package index serves another file under this name; it was not run."
        )
    return file


def last_line(text: str) -> str:
    """The last line that a program wrote, which has its reason."""
    return (text.strip().splitlines() or ["no reason given"])[-1].strip()
