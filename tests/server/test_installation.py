from __future__ import annotations

import importlib.util
import sys
from importlib import metadata

import pytest

from arcface_server.errors import TritonNotInstalledError
from arcface_server.installation import CONTAINER_COMMAND, find_installation


def test_the_installed_triton_is_found_without_importing_pytriton() -> None:
    installation = find_installation()
    assert installation.tritonserver.is_file()
    assert (installation.python_backend / "libtriton_python.so").is_file()
    assert installation.stub.is_file()
    assert all(folder.is_dir() for folder in installation.library_dirs)
    assert "pytriton" not in sys.modules


def test_without_an_installation_the_error_names_the_extra_and_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TritonNotInstalledError, match=r"pip install 'arcface-triton\[server\]'") as raised:
        find_installation()
    assert str(raised.value).endswith(CONTAINER_COMMAND)


def test_beside_numpy_2_it_is_refused_since_it_would_answer_without_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.4.6")
    with pytest.raises(TritonNotInstalledError, match=r"numpy 2\.4\.6 is installed.*pip install 'numpy<2'"):
        find_installation()
