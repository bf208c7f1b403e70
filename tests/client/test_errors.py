from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import arcface_builder.errors
import arcface_client.errors
import arcface_server.errors
from arcface_client.errors import (
    ArcFaceError,
    CallCancelledError,
    DeploymentError,
    DriftError,
    InputError,
    TransientError,
    detached,
)

MODULES = (arcface_client.errors, arcface_builder.errors, arcface_server.errors)
GROUPS = (InputError, TransientError, DeploymentError, CallCancelledError)
BASES = {
    ArcFaceError,
    arcface_builder.errors.BuilderError,
    arcface_builder.errors.StoreError,
    arcface_server.errors.LocalServerError,
}
"""What is there to be caught, and is never raised itself."""

DRAWN = re.compile(r"    (?P<indent>[│ ]*)[├└]── (?P<name>\w+)(?: \((?P<group>\w+)\))?(?: |$)")


def defined(module: ModuleType) -> list[type[ArcFaceError]]:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ArcFaceError) and kind.__module__ == module.__name__]


def drawn(module: ModuleType) -> Iterator[tuple[str, set[str]]]:
    """The names in a module's tree, each with those of its bases."""
    above = ["ArcFaceError"]
    for match in map(DRAWN.match, (module.__doc__ or "").splitlines()):
        if match is not None:
            del above[1 + len(match["indent"]) // 4 :]
            yield match["name"], {above[-1], *([match["group"]] if match["group"] else [])}
            above.append(match["name"])


KINDS = [kind for module in MODULES for kind in defined(module)]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in BASES], ids=lambda kind: kind.__name__
)
def test_every_error_says_what_to_do(kind: type[ArcFaceError]) -> None:
    assert sum(issubclass(kind, group) for group in GROUPS) == 1


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_error_is_drawn_where_it_hangs(module: ModuleType) -> None:
    of_python = {"ValueError", "TimeoutError"}  # some are drawn, since callers may catch these
    bases = {
        kind.__name__: {base.__name__ for base in kind.__bases__} - of_python
        for kind in defined(module)
        if kind is not ArcFaceError
    }
    assert {name: above - of_python for name, above in drawn(module)} == bases


def test_errors_are_defined_where_they_are_drawn() -> None:
    names = {kind.__name__ for kind in KINDS}
    for module in MODULES:
        for path in Path(str(module.__file__)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())) if path.name != "errors.py" else ():
                if isinstance(node, ast.ClassDef):
                    assert not names & {ast.unparse(base).rpartition(".")[2] for base in node.bases}, path


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not DriftError], ids=lambda kind: kind.__name__
)
def test_a_detached_error_says_the_same_and_holds_nothing(kind: type[ArcFaceError]) -> None:
    try:
        raise kind("what happened") from ValueError("why")
    except ArcFaceError as error:
        copy = detached(error)
        assert error.__traceback__ is not None
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert (copy.__traceback__, copy.__cause__, copy.__context__) == (None, None, None)


def test_a_detached_error_keeps_its_figures() -> None:
    copy = detached(DriftError("it drifts", 0.25))
    assert (str(copy), copy.drift) == ("it drifts", 0.25)
