from __future__ import annotations

import itertools

from arcface_client.backends.local_model import LocalCandidate, LocalModel
from arcface_client.backends.refused import LONGEST_WAIT_S, WAIT_S, Refused
from arcface_client.errors import DeploymentError
from arcface_client.models.embedding_space import EmbeddingSpace


def no_model(_: EmbeddingSpace | None) -> LocalModel:
    raise DeploymentError("not there")


CANDIDATE = LocalCandidate("gpu", no_model)


def waits(refused: Refused, now: list[float]) -> float:
    """For how long the candidate is left alone, in seconds."""
    start = now[0]
    while refused.is_left_alone(CANDIDATE):
        now[0] += 1
    return now[0] - start


def test_it_is_left_alone_for_longer_the_more_often_it_fails() -> None:
    now = [0.0]
    refused = Refused(lambda: now[0])
    found = []
    for _ in range(8):
        refused.add(CANDIDATE, DeploymentError("out of memory"))
        assert not refused.is_due(CANDIDATE)
        found.append(waits(refused, now))
        assert refused.is_due(CANDIDATE)

    doubled = itertools.accumulate(range(7), lambda wait_s, _: 2 * wait_s, initial=WAIT_S)
    assert found == [min(wait_s, LONGEST_WAIT_S) for wait_s in doubled]


def test_what_can_be_used_starts_anew() -> None:
    refused = Refused(lambda: 0.0)
    assert not refused.is_due(CANDIDATE)
    refused.add(CANDIDATE, DeploymentError("once"))
    refused.add(CANDIDATE, DeploymentError("twice"))
    assert str(refused.errors()[CANDIDATE]) == "twice"

    refused.remove(CANDIDATE)

    assert not refused.errors()
    assert not refused.is_left_alone(CANDIDATE)
    assert not refused.is_due(CANDIDATE)
