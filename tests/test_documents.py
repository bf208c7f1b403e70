"""What the documentation says is so: its links, its commands, the extras that it names."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.core

from arcface_server.installation import CONTAINER_COMMAND

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "model_repository/README.md"]
COMMAND = re.compile(r"^(?:\$ )?(arcface-(?:builder|client|server)) +([^#\n]+)", re.MULTILINE)
BLOCK = re.compile(r"^```(?:console|bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for program, arguments in COMMAND.findall(block.replace("\\\n", " ")):
                yield program, re.sub(r"\[(.*?)\]", r"\1", arguments).strip()  # [--optional]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize(("program", "arguments"), sorted(set(commands())), ids=" ".join)
def test_a_command_of_the_documentation_is_understood(program: str, arguments: str) -> None:
    package = program.replace("-", "_")
    module = importlib.import_module(
        f"{package}.cli" if program == "arcface-server" else f"{package}.cli.app"
    )
    command = typer.main.get_command(module.app)
    context = command.make_context(program, shlex.split(arguments))
    while isinstance(command, typer.core.TyperGroup):
        words = [*context._protected_args, *context.args]
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        context = command.make_context(name, words, parent=context)


def servers() -> Iterator[list[str]]:
    """The words of every command that runs NVIDIA's server in a container."""
    blocks = [block for page in PAGES for block in BLOCK.findall(page.read_text())]
    for block in [*blocks, CONTAINER_COMMAND]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("docker run ") and "tritonserver" in line:
                yield shlex.split(line)


def test_a_server_in_a_container_gets_the_gpus_and_is_reached_from_this_machine_only() -> None:
    found = list(servers())
    assert len(found) == 2
    for words in found:
        assert words[words.index("--gpus") + 1] == "all"
        assert words[words.index("-p") + 1].startswith("127.0.0.1:")


def test_there_are_commands_to_check() -> None:
    assert {program for program, _ in commands()} == {"arcface-builder", "arcface-client", "arcface-server"}


def test_the_extras_that_are_named_exist() -> None:
    extras = set(importlib.metadata.metadata("arcface-triton").get_all("Provides-Extra") or ())
    for page in PAGES:
        for named in re.findall(r"arcface-triton\[([a-z0-9,]+)\]", page.read_text()):
            assert set(named.split(",")) <= extras, page


def test_the_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"[`$] ?make ([a-z-]+)", page.read_text())) <= targets, page
