"""The limits that a caller sets, their ranges and defaults."""

from __future__ import annotations

from typing import Final

from ..errors import InputError

DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_MAX_IN_FLIGHT: Final = 8

DEFAULT_MAX_DRIFT_COSINE: Final = 0.001
"""The largest drift, 1 - cosine similarity, that is let pass."""

LONGEST_REQUEST_S: Final = 86_400.0
"""A day; gRPC takes far longer times for ones that are over."""


def check_max_drift_cosine(value: float) -> None:
    """Check the tolerance of drift.

    Raises:
        InputError: It is not above 0, or no number.
    """
    if not value > 0:
        raise InputError(f"max_drift_cosine is {value}; expected a number above 0.")


def check_limits(request_timeout_s: float, max_in_flight: int) -> None:
    """Check a client's limits.

    Raises:
        InputError: One of them is out of its range.
    """
    if not 0 < request_timeout_s <= LONGEST_REQUEST_S:
        raise InputError(
            f"request_timeout_s is {request_timeout_s:g}; expected a number of seconds above 0, "
            f"at most {LONGEST_REQUEST_S:g}."
        )
    if max_in_flight < 1:
        raise InputError(f"max_in_flight is {max_in_flight}; expected 1 or more.")
