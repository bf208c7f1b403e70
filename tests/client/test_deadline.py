import math
from typing import Any

import pytest

from arcface_client.errors import DeadlineExceededError, InputError
from arcface_client.triton.deadline import Deadline


def test_without_a_limit_only_the_request_limits() -> None:
    assert Deadline(None).remaining_s() == math.inf
    assert Deadline(None).remaining_s(at_most=5) == 5


def test_the_smaller_of_both_limits_counts() -> None:
    assert 9 < Deadline(10).remaining_s(at_most=60) <= 10
    assert Deadline(10).remaining_s(at_most=1) == 1


def test_a_spent_deadline_raises_a_timeout_error() -> None:
    with pytest.raises(DeadlineExceededError, match=r"1e-09 s, is over") as caught:
        Deadline(1e-9).remaining_s()
    assert isinstance(caught.value, TimeoutError)


def test_a_timeout_may_be_longer_than_floats_are() -> None:
    assert Deadline(10**400).remaining_s() > 1e8


@pytest.mark.parametrize("timeout_s", ["1", 0, -1, math.nan, True])
def test_a_timeout_must_be_positive(timeout_s: Any) -> None:
    with pytest.raises(InputError, match="expected a number of seconds above 0"):
        Deadline(timeout_s)
