"""``arcface-client embed`` holds a few batches, not the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from arcface_client.contract import CROP_BYTES, Crops
from arcface_server import LocalTriton

PROGRAM = (
    "import resource, sys; from arcface_client.cli.app import main; code = main(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def peak_memory_bytes(folder: Path, url: str) -> int:
    """The most memory that embedding a folder takes."""
    flags = ["embed", str(folder), "--output", str(folder.parent / "out.npz"), "--url", url]
    command = [sys.executable, "-c", PROGRAM, *flags, "--model", "tiny_onnx"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.faults
def test_memory_does_not_grow_with_the_folder(triton: LocalTriton, tmp_path: Path, crops: Crops) -> None:
    Image.fromarray(crops[0]).save(tmp_path / "crop.png")
    peaks = []
    for count in (500, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for index in range(count):
            os.link(tmp_path / "crop.png", folder / f"{index:06}.png")
        peaks.append(peak_memory_bytes(folder, triton.grpc_url))
    # 2,500 crops are 94 MB; what does grow is their names.
    assert peaks[1] - peaks[0] < 2500 * CROP_BYTES / 10
