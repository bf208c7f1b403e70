"""The error tree, as it is drawn and as it is."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
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
    MissingExtraError,
    NoCandidateError,
    NoCandidateNowError,
    NotFiniteError,
    ServerBusyError,
    TransientError,
    detached,
    require,
)

MODULES = (arcface_client.errors, arcface_builder.errors, arcface_server.errors)
GROUPS = (InputError, TransientError, DeploymentError, CallCancelledError)
BASES = {
    ArcFaceError,
    arcface_builder.errors.BuilderError,
    arcface_server.errors.LocalServerError,
}
"""Classes to catch, which are never raised themselves."""

DRAWN = re.compile(r"    (?P<indent>[│ ]*)[├└]── (?P<name>\w+)(?: \((?P<group>\w+)\))?(?: |$)")


def defined(module: ModuleType) -> list[type[ArcFaceError]]:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, ArcFaceError) and kind.__module__ == module.__name__]


def drawn(module: ModuleType) -> Iterator[tuple[str, set[str]]]:
    """The names in a module's tree, each with the names of its bases."""
    above = ["ArcFaceError"]
    for match in map(DRAWN.match, (module.__doc__ or "").splitlines()):
        if match is not None:
            del above[1 + len(match["indent"]) // 4 :]
            yield match["name"], {above[-1], *([match["group"]] if match["group"] else [])}
            above.append(match["name"])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_error_belongs_to_one_group(module: ModuleType) -> None:
    for kind in defined(module):
        assert kind in BASES or sum(issubclass(kind, group) for group in GROUPS) == 1, kind


def test_every_error_of_the_client_is_drawn_below_its_base() -> None:
    of_python = {"ValueError", "TimeoutError"}  # drawn where callers may catch them
    bases = {
        kind.__name__: {base.__name__ for base in kind.__bases__} - of_python
        for kind in defined(arcface_client.errors)
        if kind is not ArcFaceError
    }
    assert {name: above - of_python for name, above in drawn(arcface_client.errors)} == bases


def test_a_detached_error_says_the_same_and_holds_no_frames() -> None:
    try:
        raise DriftError("it drifts", 0.25) from ValueError("why")
    except DriftError as error:
        copy = detached(error)
        assert error.__traceback__ is not None
    assert (type(copy), str(copy), copy.drift) == (DriftError, "it drifts", 0.25)
    assert (copy.__traceback__, copy.__cause__, copy.__context__) == (None, None, None)


@pytest.mark.parametrize("kind", [NoCandidateError, NoCandidateNowError])
def test_an_error_of_several_candidates_has_the_reason_of_each(
    kind: type[NoCandidateError | NoCandidateNowError],
) -> None:
    reasons = {
        "trt:3 at a:1": DriftError("its source is another one, 4c06...", 0.25),
        "onnx:1 at a:1": ServerBusyError("full."),
        "onnx:1 at b:1": ServerBusyError("full."),
    }
    error = detached(kind(reasons))
    assert error.reasons == reasons
    listed = "trt:3 at a:1: its source is another one, 4c06...; onnx:1 at a:1: full; onnx:1 at b:1: full."
    assert str(error).endswith(listed), "no full stop before a semicolon"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(MissingExtraError, match=r"^Metrics needs .*pip install 'arcface-triton\[metrics\]'"):
        require("prometheus_client.core", extra="metrics", purpose="Metrics")


def test_another_process_gets_an_error_with_all_that_it_holds() -> None:
    lacking = NotFiniteError("small_onnx:1", [3], np.full((4, 2), np.nan, np.float32))
    for error in (DriftError("it drifts", 0.5), lacking, NoCandidateError({"a": InputError("no")})):
        there = pickle.loads(pickle.dumps(error))
        assert (type(there), str(there)) == (type(error), str(error))
        assert vars(there).keys() == vars(error).keys()
    assert pickle.loads(pickle.dumps(lacking)).positions == (3,)
