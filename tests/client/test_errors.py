from __future__ import annotations

from collections.abc import Iterator

import pytest

from arcface_client.errors import ArcFaceError, DriftError, detached


def kinds(base: type[ArcFaceError] = ArcFaceError) -> Iterator[type[ArcFaceError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", set(kinds()) - {DriftError}, ids=lambda kind: kind.__name__)
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
