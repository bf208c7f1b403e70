"""A client's limits."""

from __future__ import annotations

from typing import Final

from .errors import InputError

DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_MAX_IN_FLIGHT: Final = 8


def check_limits(request_timeout_s: float, max_in_flight: int) -> None:
    """Check a client's limits.

    Raises:
        InputError: One of them is out of its range.
    """
    if not request_timeout_s > 0:
        raise InputError(f"request_timeout_s is {request_timeout_s}; expected a number of seconds above 0.")
    if max_in_flight < 1:
        raise InputError(f"max_in_flight is {max_in_flight}; expected 1 or more.")
