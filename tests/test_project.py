"""What holds for the project as a whole: its wheel, and which package may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "arcface_builder": ROOT / "builder/arcface_builder",
    "arcface_client": ROOT / "client/arcface_client",
    "arcface_server": ROOT / "server/arcface_server",
}
MAY_IMPORT = {
    "arcface_builder": {"arcface_client"},
    "arcface_client": set(),
    "arcface_server": {"arcface_client"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_in_the_allowed_direction(package: str) -> None:
    forbidden = PACKAGES.keys() - MAY_IMPORT[package] - {package}
    for path in PACKAGES[package].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            used = {name.partition(".")[0] for name in names}
            assert not used & forbidden, f"{path} imports {used & forbidden}"


def test_the_clients_modules_and_sub_packages_import_in_one_direction() -> None:
    folder = PACKAGES["arcface_client"]
    uses: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        place = path.relative_to(folder).with_suffix("").parts
        if place == ("__init__",):
            continue  # where the public names are gathered
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                # From any depth inwards, and by the package's own name.
                if node.level == 0 and (node.module or "").startswith("arcface_client."):
                    imported = [str(node.module).partition(".")[2]]
                elif node.level == len(place):
                    imported = [node.module] if node.module else [alias.name for alias in node.names]
                else:
                    continue
                uses.setdefault(place[0], set()).update(name.partition(".")[0] for name in imported)
    assert "triton" in uses["failover"]
    TopologicalSorter(uses).prepare()  # raises on a cycle, and shows it


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "pydantic",
    "typer",
    "rich",
    "onnx",
    "onnxruntime",
    "PIL",
    "cv2",
    "insightface",
    "torch",
    "matplotlib",
    "pyarrow",
    "fsspec",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    assert not modules_after(f"import {package}") & (HEAVY | {"grpc", "numpy"})


def test_the_plain_client_loads_grpc_and_numpy_but_nothing_heavier() -> None:
    loaded = modules_after("from arcface_client import EmbeddingClient")
    assert not loaded & (HEAVY | PACKAGES.keys() - {"arcface_client"})


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("onnx", "arcface-builder needs the package onnx: pip install 'arcface-triton[builder,cli]'\n"),
        ("fcntl", "arcface-builder needs Linux or macOS: Python has no module fcntl here\n"),
    ],
)
def test_the_builder_says_what_a_small_installation_or_its_system_lacks(missing: str, said: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from arcface_builder.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, said)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(folder.parent))
        for folder in PACKAGES.values()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == sources


def test_the_wheel_names_the_commands_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {
            name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name
        }
        commands = archive.read(info["entry_points.txt"]).decode()
        metadata = archive.read(info["METADATA"]).decode()
    for command in ("arcface-builder", "arcface-client", "arcface-server"):
        assert f"{command} = {command.replace('-', '_')}." in commands
    assert "License-Expression: Apache-2.0" in metadata
    assert "licenses/LICENSE" in info
    base = [
        line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert sorted(line.split()[1].partition("[")[0].partition(">")[0] for line in base) == [
        "numpy",
        "pydantic",
        "pyyaml",
        "tritonclient",
    ]
