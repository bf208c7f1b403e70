"""Put together the folder of backends that tritonserver is started with.

Triton runs a backend that is a ``model.py`` by means of its Python backend, so the folder holds that
one, and one folder for each backend of ours, named as ``config.pbtxt`` names it::

    python/       libtriton_python.so  triton_python_backend_utils.py  triton_python_backend_stub
    onnxruntime/  model.py
    tensorrt/     model.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .installation import Installation

_OURS = Path(__file__).parent / "backends"


def assemble_backends(installation: Installation, target: Path) -> None:
    """Write the folder of backends.

    Args:
        installation: The Triton to take the Python backend from.
        target: Folder to write into; it must not exist yet.
    """
    python = target / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copyfile(installation.python_backend / name, python / name)
    stub = python / "triton_python_backend_stub"
    shutil.copyfile(installation.stub, stub)
    stub.chmod(0o755)
    for model in sorted(_OURS.glob("*/model.py")):
        folder = target / model.parent.name
        folder.mkdir()
        shutil.copyfile(model, folder / "model.py")
