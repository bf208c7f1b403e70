"""Where perf_analyzer comes from: the PATH, or one of NVIDIA's wheels.

NVIDIA's SDK container has it on the PATH. The wheels of tritonclient carried it up to 2.60; the one in
2.51.0 is the last that runs with the C library of Debian 12. It needs two shared libraries that such
systems lack, and nvidia-pytriton's wheel has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from arcface_client.models.files import cache_folder, sha256_of

from ..errors import PerfAnalyzerError
from ..installation import find_installation

VERSION: Final = "2.51.0"
WHEEL_SHA256: Final = "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52"

_MEMBER: Final = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
# The names that the program loads, and the files in the wheel, whose names have a hash in them.
_LIBRARIES: Final = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
_ELSEWHERE: Final = (
    "Or run `arcface-server perf` where perf_analyzer is on the PATH, as in NVIDIA's container "
    "nvcr.io/nvidia/tritonserver:<YY.MM>-py3-sdk."
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
    """Find perf_analyzer on the PATH, else in the cache, where it is downloaded to once.

    Raises:
        PerfAnalyzerError: It is not found and cannot be downloaded.
        TritonNotInstalledError: It is not found, and nvidia-pytriton, which has libraries for it, neither.
    """
    on_path = shutil.which("perf_analyzer")
    if on_path is not None:
        return PerfAnalyzer(Path(on_path))
    folder = cache_folder() / "perf_analyzer" / VERSION
    if not folder.is_dir():
        _install(folder)
    return PerfAnalyzer(folder / "perf_analyzer", folder / "lib")


def _install(folder: Path) -> None:
    """Write the program and its libraries; the folder appears whole or not at all."""
    carried = find_installation().library_dirs[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        staged = Path(scratch) / "staged"
        with zipfile.ZipFile(download_wheel(Path(scratch))) as archive:
            program = Path(archive.extract(_MEMBER, scratch))
        program.chmod(0o755)
        (staged / "lib").mkdir(parents=True)
        program.rename(staged / "perf_analyzer")
        for name, pattern in _LIBRARIES.items():
            file = next(carried.glob(pattern), None)
            if file is None:
                raise PerfAnalyzerError(f"{carried} lacks {name}. {_ELSEWHERE}")
            shutil.copyfile(file, staged / "lib" / name)
        with suppress(OSError):  # another process was quicker
            staged.rename(folder)


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip, which uses the user's index, proxy and certificates.

    Raises:
        PerfAnalyzerError: pip failed, or the file has another SHA-256.
    """
    requirement = f"tritonclient=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    # The program needs no Python. Without these options, pip would refuse a wheel for another Python.
    command += ["--platform=manylinux1_x86_64", "--python-version=3.10", f"--dest={folder}", requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PerfAnalyzerError(
            f"pip cannot download {requirement}: {last_line(result.stderr)}. {_ELSEWHERE}"
        )
    (wheel,) = folder.glob("*.whl")
    digest = sha256_of(wheel)
    if digest != WHEEL_SHA256:
        raise PerfAnalyzerError(
            f"{wheel.name} has the SHA-256 {digest}; expected {WHEEL_SHA256}. "
            "The package index serves another file under this name; it was not run."
        )
    return wheel


def last_line(text: str) -> str:
    """The last line that a program wrote, which has its reason."""
    return (text.strip().splitlines() or ["no reason given"])[-1].strip()
