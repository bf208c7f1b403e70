from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arcface_server.errors import TritonNotInstalledError
from arcface_server.installation import CONTAINER_COMMAND, find_installation

Change = Callable[[pytest.MonkeyPatch], None]


def test_the_installed_triton_is_found_without_importing_pytriton() -> None:
    installation = find_installation()
    assert installation.tritonserver.is_file()
    assert (installation.python_backend / "libtriton_python.so").is_file()
    assert installation.stub.is_file()
    assert all(folder.is_dir() for folder in installation.library_dirs)
    assert "pytriton" not in sys.modules


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda patch: patch.setattr(platform, "system", lambda: "Darwin"), "this is Darwin on"),
        (lambda patch: patch.setattr(platform, "machine", lambda: "aarch64"), "Linux on aarch64"),
        (lambda patch: patch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31")), "glibc 2.31,"),
        (lambda patch: patch.setattr(platform, "libc_ver", lambda: ("", "")), "no glibc"),
        (lambda patch: patch.setattr(sys, "version_info", (3, 13, 0)), "Python 3.13."),
    ],
    ids=["macOS", "arm64", "old glibc", "musl", "Python 3.13"],
)
def test_on_a_machine_without_a_wheel_the_error_names_the_container(
    monkeypatch: pytest.MonkeyPatch, change: Change, named: str
) -> None:
    change(monkeypatch)
    with pytest.raises(TritonNotInstalledError) as raised:
        find_installation()
    assert named in str(raised.value)
    assert str(raised.value).endswith(CONTAINER_COMMAND)


def test_without_an_installation_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TritonNotInstalledError, match=r"pip install 'arcface-triton\[server\]'"):
        find_installation()


def test_an_installation_that_lacks_files_has_to_be_reinstalled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_loader("pytriton", loader=None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(TritonNotInstalledError, match="pip install --force-reinstall nvidia-pytriton"):
        find_installation()
